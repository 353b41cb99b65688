//! A read that is under way without a thread.
//!
//! It is sent on a connection that the HTTP library keeps, if one is at hand and nothing
//! speaks against it, and is the first attempt of a request that [`Upstream::go_on`] sees to
//! its end: what the answer means, and what is tried again, is decided there.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::transport::Link;

use super::clock;
use super::exchange::{Answer, Exchange, Progress};
use super::in_flight::Place;
use super::upstream::{Ask, Begun, Upstream};

/// A place and its connection, for one read.
pub(super) struct Line {
    upstream: Arc<Upstream>,
    place: Place,
    link: Arc<Link>,
}

/// A read that has been sent.
pub(super) struct Pending {
    upstream: Arc<Upstream>,
    deadline: Duration,
    state: State,
}

enum State {
    /// The connection is let go of before its place is.
    UnderWay {
        exchange: Exchange,
        #[expect(dead_code, reason = "what it does it does when it is dropped")]
        place: Place,
    },
    Answered(Answer),
    /// Nothing is known but that it has to be sent again.
    Broken,
    TimedOut,
}

impl Line {
    /// `None`: a read would have to wait, or there is reason to be careful.
    pub(super) fn at_hand(upstream: &Arc<Upstream>) -> Option<Self> {
        let (place, link) = upstream.place_at_hand()?;
        Some(Self { upstream: Arc::clone(upstream), place, link })
    }

    /// Sends the read.
    pub(super) fn get(self, path: &str, token: Option<&Secret>) -> Pending {
        let Self { upstream, place, link } = self;
        let request = upstream.get_request(path, token);
        let exchange = request.and_then(|request| Exchange::begin(link, &request));
        let state = exchange.map_or(State::Broken, |exchange| State::UnderWay { exchange, place });
        let deadline = clock::now() + upstream.timeout();
        Pending { upstream, deadline, state }
    }
}

impl Pending {
    /// What tells when it is worth to go on.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::UnderWay { exchange, .. } => Some(exchange.source()),
            _ => None,
        }
    }

    /// How long the answer is waited for.
    pub(super) fn time_left(&self) -> Duration {
        self.deadline.saturating_sub(clock::now())
    }

    /// Goes on as far as that takes no waiting. Whether it has ended.
    pub(super) fn advance(&mut self) -> bool {
        let State::UnderWay { exchange, .. } = &mut self.state else { return true };
        self.state = match exchange.advance() {
            Progress::Answered(answer) => State::Answered(answer),
            Progress::Broken => State::Broken,
            Progress::Waiting if self.time_left().is_zero() => State::TimedOut,
            Progress::Waiting => return false,
        };
        true
    }

    /// Whether it has ended with what is an answer, however one looks at it.
    pub(super) fn is_answered(&self) -> bool {
        matches!(&self.state, State::Answered(answer) if matches!(answer.status, 200 | 404))
    }

    /// What has come of it, for the request to be gone on with.
    pub(super) fn end(self, ask: &Ask<'_>) -> Begun {
        let attempt = match self.state {
            State::Answered(answer) => self.upstream.judge(answer, ask),
            State::TimedOut => Some(self.upstream.timed_out()),
            State::Broken | State::UnderWay { .. } => None,
        };
        Begun { attempt, deadline: Some(self.deadline) }
    }
}

impl Upstream {
    /// The bytes of a read; `None` when the token fits in no header.
    fn get_request(&self, path: &str, token: Option<&Secret>) -> Option<Zeroizing<Vec<u8>>> {
        let (before, after) = self.get_frame();
        let token = token.map(Secret::expose);
        if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return None;
        }
        let token = token.map(|token| ["X-Vault-Token: ", token, "\r\n"]);
        let parts = [before, path, after].into_iter().chain(token.into_iter().flatten());
        let parts = parts.chain(["\r\n"]);
        let length = parts.clone().map(str::len).sum();
        let mut request = Zeroizing::new(Vec::with_capacity(length));
        parts.for_each(|part| request.extend_from_slice(part.as_bytes()));
        Some(request)
    }
}
