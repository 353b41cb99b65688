//! Clients, and what they may rely on in any order of steps.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use shuttle::thread::{self, JoinHandle};

use super::Limits;
use super::connection::Connection;
use super::parked::Parked;
use super::poll::{Interest, Kernel, Poller, Sockets, Stream};
use super::worker::Shared;
use crate::channel::{End, bounded};
use crate::router::Router;

/// A server without its accept loop.
struct Server {
    shared: Arc<Shared>,
    end: Arc<End>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(places: usize, queued: usize) -> Self {
        let end = Arc::default();
        let (jobs, queue) = bounded(queued, &end);
        let hour = Duration::from_secs(3600);
        let shared = Arc::new(Shared {
            router: Arc::new(Router),
            limits: Limits { request: hour, idle: hour, write: hour },
            parked: Parked::new(places).unwrap(),
            clients: Poller::new().unwrap(),
            is_stopping: AtomicBool::new(false),
            jobs,
        });
        let mut threads = Vec::new();
        for _ in 0..2 {
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || shared.serve_ready()));
        }
        let ended = bounded(0, &end).1;
        let worker = Arc::clone(&shared);
        threads.push(thread::spawn(move || worker.serve_blocking(&queue, &ended)));
        Self { shared, end, threads }
    }

    fn sweep(&mut self) {
        let (shared, ended) = (Arc::clone(&self.shared), bounded(0, &self.end).1);
        self.threads.push(thread::spawn(move || shared.sweep(&ended)));
    }

    /// Takes a client in, as the accept loop does, if there is a place.
    fn accept(&self, number: usize, is_overdue: bool) {
        let kernel = Arc::clone(&self.shared.parked.poller.0);
        let connection = Connection::new(Stream { number, kernel }, is_overdue);
        if let Ok(connection) = self.shared.parked.admit(connection, true) {
            self.shared.parked.park(connection, Interest::Read);
        }
    }

    /// A client that sends these requests one after the other, each if it blocks, and returns how
    /// many were answered before the server closed the connection or the client did.
    fn client(&self, number: usize, requests: &'static [bool]) -> JoinHandle<usize> {
        let kernel = Arc::clone(&self.shared.parked.poller.0);
        thread::spawn(move || {
            let answered = requests.iter().take_while(|blocks| ask(&kernel, number, **blocks));
            let answered = answered.count();
            kernel.with(number, |socket| socket.has_hung_up = true);
            answered
        })
    }

    /// Drains, and ends every thread.
    fn stop(self) {
        self.shared.parked.drain();
        let parked = &self.shared.parked;
        assert!(parked.wait_until_drained(Duration::ZERO), "a connection is lost");
        parked.poller.end();
        self.end.come();
        self.threads.into_iter().for_each(|it| it.join().unwrap());
        let sockets = parked.poller.0.sockets.lock().unwrap();
        assert!(sockets.all.values().all(|socket| socket.is_closed), "one is left open");
    }
}

/// Sends a request and waits for the answer. Returns `false` if the server closes instead.
fn ask(kernel: &Kernel, number: usize, blocks: bool) -> bool {
    let before = kernel.with(number, |socket| {
        socket.requests.push_back(blocks);
        socket.answers
    });
    let sockets = kernel.sockets.lock().unwrap();
    let waits = kernel.answered.wait_while(sockets, |sockets| {
        let socket = &sockets.all[&number];
        socket.answers == before && !socket.is_closed
    });
    let socket = &waits.unwrap().all[&number];
    assert!(socket.answers <= before + 1, "answered twice");
    socket.answers > before
}

/// With a place for everyone, each request gets its answer.
pub fn every_request_is_answered() {
    let server = Server::start(2, 2);
    server.accept(0, false);
    let first = server.client(0, &[false, true]);
    server.accept(1, false);
    let second = server.client(1, &[true, false]);
    assert_eq!((first.join().unwrap(), second.join().unwrap()), (2, 2));
    server.stop();
}

/// A request that finds the queue of the blocking workers full is answered, too.
pub fn the_queue_is_full() {
    let server = Server::start(3, 1);
    let clients: Vec<_> = (0..3)
        .map(|number| {
            server.accept(number, false);
            server.client(number, &[true])
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 1);
    }
    server.stop();
}

/// A new connection takes the place of an idle one, and no event of that one reaches it.
pub fn making_room() {
    let server = Server::start(1, 1);
    server.accept(0, false);
    let first = server.client(0, &[false]);
    server.accept(1, false);
    let second = server.client(1, &[true]);
    // Either is closed, if the other was idle or not.
    assert!(first.join().unwrap() + second.join().unwrap() >= 1, "both were turned away");
    server.stop();
}

/// A connection that is overdue is closed, or answered if its request came before that.
pub fn overdue_connections() {
    let mut server = Server::start(2, 1);
    server.accept(0, true);
    let overdue = server.client(0, &[false, true]);
    server.accept(1, false);
    let other = server.client(1, &[true]);
    server.sweep();
    overdue.join().unwrap();
    assert_eq!(other.join().unwrap(), 1);
    server.stop();
}

/// A stop closes what is idle, also a connection that becomes idle later, and waits for the rest.
pub fn draining() {
    let server = Server::start(2, 1);
    let kernel = Arc::clone(&server.shared.parked.poller.0);
    let clients =
        [[true, false], [false, true]].into_iter().enumerate().map(|(number, requests)| {
            server.accept(number, false);
            let kernel = Arc::clone(&kernel);
            // They keep their connections for as long as they can.
            thread::spawn(move || {
                requests.into_iter().all(|blocks| ask(&kernel, number, blocks));
                let sockets = kernel.sockets.lock().unwrap();
                let is_open = |sockets: &mut Sockets| !sockets.all[&number].is_closed;
                drop(kernel.answered.wait_while(sockets, is_open));
            })
        });
    let clients: Vec<_> = clients.collect();
    server.stop();
    clients.into_iter().for_each(|it| it.join().unwrap());
}
