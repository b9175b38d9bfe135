//! Hands the fuzzer's bytes to `surehook_model::targets::intake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| surehook_model::targets::intake::run(data));
