//! Hands the fuzzer's bytes to `surehook_model::targets::worker`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| surehook_model::targets::worker::run(data));
