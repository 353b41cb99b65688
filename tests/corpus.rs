//! Replays the inputs of `make fuzz` that are kept in tests/fuzz/corpus.
#![cfg(unix)]

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Panics of any thread, also of those that the service goes on after.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn every_input_in_the_corpus_keeps_the_promises() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        report(panic);
    }));
    for (name, target) in targets::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let files = fs::read_dir(&directory).expect("each target has inputs");
        let mut run = target();
        for file in files {
            let path = file.expect("readable").path();
            eprintln!("{}", path.display());
            run(&fs::read(&path).expect("readable"));
            assert_eq!(PANICS.load(Ordering::SeqCst), 0, "another thread panicked");
        }
    }
}
