//! What the server does wrong, when a test tells it to.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::DEADLINE;
use super::exchange::{Call, Refusal, Reply};

/// On which side of the request's effect something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The request has no effect.
    Before,
    /// The request has its effect, and the client does not hear of it.
    After,
}

/// One way to misbehave.
#[derive(Clone)]
pub enum Fault {
    /// The connection is reset (on a Unix socket: closed).
    Reset(When),
    /// The connection is closed in an orderly way, without an answer.
    Close(When),
    /// No answer until the test releases it; then the usual one.
    Hang(When),
    /// The request has its effect; half of the answer comes, then the connection closes.
    Half,
    /// The request has its effect; half of the answer comes, the rest never.
    HalfThenSilence,
    /// Each request takes this much longer, beside others.
    Slow(Duration),
    /// Each request takes this much longer, one after the other.
    SlowDisk(Duration),
    /// This answer instead of the effect.
    Answer(Reply),
    /// The effect, and then this answer instead of its own.
    AnswerAfter(Reply),
    /// These bytes instead of anything, then the end of the connection.
    Bytes(Vec<u8>),
    /// The request's token is revoked before the request is looked at.
    RevokeToken,
}

impl Fault {
    /// A rate limit quota, with the `Retry-After` that Vault and proxies send.
    pub fn too_many_requests(retry_after: Duration) -> Self {
        let mut reply = refused(429, QUOTA);
        reply.headers.push(("Retry-After", retry_after.as_secs().to_string()));
        Self::Answer(reply)
    }

    /// The same as `OpenBao` sends it: without `Retry-After`.
    pub fn too_many_requests_without_retry_after() -> Self {
        Self::Answer(refused(429, QUOTA))
    }

    pub fn sealed() -> Self {
        Self::Answer(Refusal::sealed().into_reply())
    }

    pub fn internal_error() -> Self {
        Self::Answer(refused(500, "1 error occurred:\n\t* internal error\n\n"))
    }

    /// What a proxy says whose server is away.
    pub fn bad_gateway() -> Self {
        Self::Answer(Reply {
            status: 502,
            headers: vec![("Content-Type", "text/html".to_owned())],
            body: b"<html><body><h1>502 Bad Gateway</h1></body></html>\n".to_vec(),
        })
    }

    /// What a standby says that has not caught up yet.
    pub fn behind() -> Self {
        Self::Answer(refused(412, "required index state not present"))
    }

    /// What a mount says that has just been made.
    pub fn upgrading() -> Self {
        Self::Answer(refused(
            400,
            "Upgrading from non-versioned to versioned data. This backend will be unavailable \
             for a brief period and will resume service shortly.",
        ))
    }

    pub fn forbidden() -> Self {
        Self::Answer(Refusal::no_capability().into_reply())
    }

    /// What a server says that knows no PATCH.
    pub fn no_such_method() -> Self {
        Self::Answer(Refusal::unsupported_operation().into_reply())
    }

    /// A standby's redirect to `http://host:port`: the same path there.
    pub fn redirect(location: &str) -> Self {
        Self::Answer(Reply {
            status: 307,
            headers: vec![("Location", location.to_owned())],
            body: Vec::new(),
        })
    }

    /// 200 and something that is not JSON, as from a captive portal.
    pub fn garbage() -> Self {
        Self::Answer(Reply {
            status: 200,
            headers: vec![("Content-Type", "text/html".to_owned())],
            body: b"<!DOCTYPE html><title>Welcome</title>\n".to_vec(),
        })
    }

    /// 200 and JSON that is not what was asked for.
    pub fn other_json() -> Self {
        Self::Answer(Reply::json(200, &json!({ "data": [1, 2, 3] })))
    }

    fn only_delays(&self) -> bool {
        matches!(self, Self::Slow(_) | Self::SlowDisk(_))
    }
}

const QUOTA: &str = "request path \"secret/data\": rate limit quota exceeded";

fn refused(status: u16, error: &str) -> Reply {
    Refusal::new(status, error).into_reply()
}

/// Which requests meet a fault; all, unless told otherwise.
#[derive(Default, Clone)]
pub struct Matching {
    method: Option<&'static str>,
    path: String,
}

impl Matching {
    fn fits(&self, call: &Call) -> bool {
        self.method.is_none_or(|method| method == call.method) && call.path.starts_with(&self.path)
    }
}

/// A fault about to be switched on.
#[must_use = "a fault begins with `next` or `until_cleared`"]
pub struct Draft<'a> {
    faults: &'a Faults,
    fault: Fault,
    matching: Matching,
    skip: usize,
}

impl Draft<'_> {
    /// Only requests of this method to paths (without `/v1/`) that begin so.
    pub fn on(mut self, method: &'static str, path: &str) -> Self {
        self.matching = Matching { method: Some(method), path: path.to_owned() };
        self
    }

    /// Requests of any method to paths that begin so.
    pub fn on_path(mut self, path: &str) -> Self {
        self.matching = Matching { method: None, path: path.to_owned() };
        self
    }

    /// Lets so many matching requests pass first.
    pub fn after(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// For the next so many matching requests.
    pub fn next(self, requests: usize) -> Active {
        self.begin(Some(requests))
    }

    /// For every matching request until [`Active::clear`].
    pub fn until_cleared(self) -> Active {
        self.begin(None)
    }

    fn begin(self, left: Option<usize>) -> Active {
        let active = Active(Arc::new(Shared {
            fault: self.fault,
            matching: self.matching,
            progress: Mutex::new(Progress {
                skip: self.skip,
                left,
                hits: 0,
                waiting: 0,
                open: false,
                passes: 0,
            }),
            changed: Condvar::new(),
            disk: Mutex::new(()),
        }));
        let mut list = self.faults.active.lock().expect("nothing panics while it is held");
        list.push(active.clone());
        active
    }
}

/// A fault that is switched on; dropping this leaves it on.
#[derive(Clone)]
pub struct Active(Arc<Shared>);

struct Shared {
    fault: Fault,
    matching: Matching,
    progress: Mutex<Progress>,
    changed: Condvar,
    disk: Mutex<()>,
}

struct Progress {
    skip: usize,
    left: Option<usize>,
    hits: usize,
    waiting: usize,
    open: bool,
    passes: usize,
}

impl Active {
    /// How many requests have met it.
    pub fn hits(&self) -> usize {
        self.progress(|progress| progress.hits)
    }

    /// How many requests hang right now.
    pub fn hanging(&self) -> usize {
        self.progress(|progress| progress.waiting)
    }

    /// Waits until so many requests have met it.
    #[track_caller]
    pub fn wait_for_hits(&self, count: usize) {
        self.wait(|progress| progress.hits >= count, "requests that meet the fault");
    }

    /// Waits until so many requests hang at once.
    #[track_caller]
    pub fn wait_for_hanging(&self, count: usize) {
        self.wait(|progress| progress.waiting >= count, "requests that hang");
    }

    /// Lets so many hanging requests (or later ones) go on.
    pub fn let_through(&self, requests: usize) {
        self.progress(|progress| progress.passes += requests);
        self.0.changed.notify_all();
    }

    /// Lets every request go on from now on.
    pub fn release(&self) {
        self.clear();
    }

    /// Ends the fault; what hangs goes on.
    pub fn clear(&self) {
        self.progress(|progress| {
            progress.left = Some(0);
            progress.open = true;
        });
        self.0.changed.notify_all();
    }

    pub fn fault(&self) -> &Fault {
        &self.0.fault
    }

    /// Holds a request; ends early when `gives_up` says so.
    pub fn hold(&self, gives_up: impl Fn() -> bool) {
        let mut progress = self.0.progress.lock().expect("nothing panics while it is held");
        progress.waiting += 1;
        self.0.changed.notify_all();
        while !progress.open && progress.passes == 0 && !gives_up() {
            // Whoever gives up has nobody to notify this.
            let wait = self.0.changed.wait_timeout(progress, Duration::from_millis(20));
            progress = wait.expect("nothing panics while it is held").0;
        }
        progress.passes = progress.passes.saturating_sub(1);
        progress.waiting -= 1;
        drop(progress);
        self.0.changed.notify_all();
    }

    /// Takes the time that a delaying fault takes.
    pub fn delay(&self) {
        match self.0.fault {
            Fault::Slow(latency) => std::thread::sleep(latency),
            Fault::SlowDisk(latency) => {
                let _disk = self.0.disk.lock().expect("nothing panics while it is held");
                std::thread::sleep(latency);
            }
            _ => {}
        }
    }

    fn progress<T>(&self, read: impl FnOnce(&mut Progress) -> T) -> T {
        read(&mut self.0.progress.lock().expect("nothing panics while it is held"))
    }

    #[track_caller]
    fn wait(&self, condition: impl Fn(&Progress) -> bool, what: &str) {
        let end = Instant::now() + DEADLINE;
        let mut progress = self.0.progress.lock().expect("nothing panics while it is held");
        while !condition(&progress) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Not while the lock is held: others would trip over it.
                drop(progress);
                panic!("not within {DEADLINE:?}: {what}");
            }
            let wait = self.0.changed.wait_timeout(progress, left);
            progress = wait.expect("nothing panics while it is held").0;
        }
    }

    /// Whether the request meets the fault; counts it if so.
    fn meets(&self, call: &Call) -> bool {
        if !self.0.matching.fits(call) {
            return false;
        }
        let met = self.progress(|progress| {
            if progress.left == Some(0) {
                return false;
            }
            if progress.skip > 0 {
                progress.skip -= 1;
                return false;
            }
            progress.left = progress.left.map(|left| left - 1);
            progress.hits += 1;
            true
        });
        self.0.changed.notify_all();
        met
    }
}

/// Those that are switched on, in the order in which they were.
#[derive(Default)]
pub struct Faults {
    active: Mutex<Vec<Active>>,
}

impl Faults {
    pub fn draft(&self, fault: Fault) -> Draft<'_> {
        Draft { faults: self, fault, matching: Matching::default(), skip: 0 }
    }

    /// What this request meets: every delay that fits, and the first of the others.
    pub fn met_by(&self, call: &Call) -> (Vec<Active>, Option<Active>) {
        let mut list = self.active.lock().expect("nothing panics while it is held");
        list.retain(|active| active.progress(|progress| progress.left != Some(0)));
        let (mut delays, mut first) = (Vec::new(), None);
        for active in &*list {
            let delays_only = active.fault().only_delays();
            if (delays_only || first.is_none()) && active.meets(call) {
                if delays_only {
                    delays.push(active.clone());
                } else {
                    first = Some(active.clone());
                }
            }
        }
        (delays, first)
    }

    /// Ends all of them.
    pub fn clear(&self) {
        for active in self.active.lock().expect("nothing panics while it is held").drain(..) {
            active.clear();
        }
    }
}
