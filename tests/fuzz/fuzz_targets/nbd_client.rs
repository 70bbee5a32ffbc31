#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| twinblk_fuzz::nbd::client(data));
