//! Single-flight, for callers whose calls Vault sometimes fails.

#[path = "../../../src/backend/hashicorp/single_flight.rs"]
mod single_flight;

/// Stands in for the errors of the backend.
mod message {
    pub struct Unavailable;
    #[derive(Debug)]
    pub struct Error;

    impl Unavailable {
        pub fn new(_: &str) -> Self {
            Self
        }
    }

    impl From<Unavailable> for Error {
        fn from(_: Unavailable) -> Self {
            Self
        }
    }
}

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use shuttle::rand::Rng as _;
use shuttle::sync::{Mutex, MutexGuard, PoisonError};
use shuttle::thread;

use single_flight::SingleFlight;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What Vault has seen.
#[derive(Default)]
struct Vault {
    requests: AtomicUsize,
    is_asked: AtomicBool,
    /// Two requests ran at a time. Noted, as a panic would only fail the call.
    overlap: AtomicBool,
}

impl Vault {
    /// Answers each input with itself and the number of the request; or, for want of an answer,
    /// nothing, as after a panic.
    fn ask(&self, batch: &[usize]) -> Vec<Result<(usize, usize), message::Error>> {
        self.overlap.fetch_or(self.is_asked.swap(true, SeqCst), SeqCst);
        let request = self.requests.fetch_add(1, SeqCst) + 1;
        thread::yield_now();
        let fails = shuttle::rand::thread_rng().gen_bool(0.2);
        self.is_asked.store(false, SeqCst);
        let answers = batch.iter().map(|&input| Ok((input, request)));
        if fails { Vec::new() } else { answers.collect() }
    }
}

/// Each caller gets the answer to its own input, by a request that began after the call, or an
/// error; nobody waits for ever; and Vault gets one request at a time.
pub fn each_caller_gets_its_own_outcome() {
    const MOST: usize = 2;
    let flight: Arc<SingleFlight<usize, (usize, usize)>> = Arc::default();
    let vault = Arc::new(Vault::default());
    let callers = (0..3).map(|caller| {
        let (flight, vault) = (Arc::clone(&flight), Arc::clone(&vault));
        thread::spawn(move || {
            for input in [caller, caller + 10] {
                let before = vault.requests.load(SeqCst);
                let size = |waiting: &VecDeque<_>| waiting.len().min(MOST);
                if let Ok((answered, request)) = flight.call(input, size, |it| vault.ask(it)) {
                    assert_eq!(answered, input, "the outcome of another call");
                    assert!(request > before, "a request that began before the call");
                }
            }
        })
    });
    callers.collect::<Vec<_>>().into_iter().for_each(|it| it.join().unwrap());
    assert!(!vault.overlap.load(SeqCst), "two requests at a time");
    assert!(vault.requests.load(SeqCst) <= 6, "a request for nobody");
}
