//! Runs the fuzz target `surehook_model::targets::key_places` on the fuzzer's bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| surehook_model::targets::key_places::run(data));
