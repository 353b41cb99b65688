//! The locks of the places where threads meet. The models in tests/models put others here, to try
//! many orders in which the threads may run.

pub(crate) use std::sync::*;
