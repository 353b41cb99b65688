//! The locks of the places where threads meet. The models in tests/models put others here, to try
//! many orders in which the threads may run.

pub(crate) use std::sync::*;

/// Locks a mutex whose content stays valid even if its holder panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
