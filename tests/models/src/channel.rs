//! Stands in for crossbeam-channel: one queue, and the end of everything, which its receivers
//! notice as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::{Condvar, Mutex};

#[derive(Debug, Default)]
pub struct End(Mutex<bool>, Condvar);

#[derive(Debug)]
pub struct Sender<T> {
    queue: Arc<Mutex<VecDeque<T>>>,
    capacity: usize,
    end: Arc<End>,
}

#[derive(Debug)]
pub struct Receiver<T> {
    queue: Arc<Mutex<VecDeque<T>>>,
    end: Arc<End>,
    /// How many more waits with a deadline reach it.
    timeouts: Mutex<u32>,
}

#[derive(Debug)]
pub struct RecvError;

#[derive(Debug)]
pub enum RecvTimeoutError {
    Timeout,
    Disconnected,
}

pub struct Full<T>(T);

impl<T> Full<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl End {
    pub fn come(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

pub fn bounded<T>(capacity: usize, end: &Arc<End>) -> (Sender<T>, Receiver<T>) {
    let (queue, timeouts) = (Arc::default(), Mutex::new(3));
    let sender = Sender { queue: Arc::clone(&queue), capacity, end: Arc::clone(end) };
    (sender, Receiver { queue, end: Arc::clone(end), timeouts })
}

impl<T> Sender<T> {
    pub fn try_send(&self, item: T) -> Result<(), Full<T>> {
        let _end = self.end.0.lock().unwrap();
        let mut queue = self.queue.lock().unwrap();
        if queue.len() == self.capacity {
            return Err(Full(item));
        }
        queue.push_back(item);
        self.end.1.notify_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next item, or `None` at the end.
    pub fn next(&self) -> Option<T> {
        let mut end = self.end.0.lock().unwrap();
        loop {
            let item = self.queue.lock().unwrap().pop_front();
            if item.is_some() || *end {
                return item;
            }
            end = self.end.1.wait(end).unwrap();
        }
    }

    pub fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
        let mut timeouts = self.timeouts.lock().unwrap();
        if *timeouts > 0 {
            *timeouts -= 1;
            return Err(RecvTimeoutError::Timeout);
        }
        self.next().ok_or(RecvTimeoutError::Disconnected)
    }
}

/// The one `select!` that there is.
#[macro_export]
macro_rules! select {
    (recv($jobs:ident) -> $job:ident => $value:expr, recv($ended:ident) -> _ => $end:expr) => {{
        let _ = $ended;
        match $jobs.next() {
            Some($job) => {
                let $job = Ok($job);
                $value
            }
            None => $end,
        }
    }};
}
