//! Stands in for the router: every call gets the same answer.

#[derive(Debug)]
pub struct Router;

#[derive(Debug, Clone, Copy)]
pub struct Call;

#[derive(Debug)]
pub struct Answer;

impl Router {
    pub fn answer(&self, _: &Call, _: &[u8], _: &crate::caller::Peer) -> Answer {
        shuttle::thread::yield_now();
        Answer
    }
}

impl Answer {
    pub fn error(_: u16, _: &str) -> Self {
        Self
    }

    pub fn with_header(self, _: &str, _: &str) -> Self {
        self
    }
}
