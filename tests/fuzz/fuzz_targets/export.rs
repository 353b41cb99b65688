#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

std::thread_local!(static RUN: std::cell::RefCell<targets::Run> = targets::export::export().into());
libfuzzer_sys::fuzz_target!(|data: &[u8]| RUN.with_borrow_mut(|run| run(data)));
