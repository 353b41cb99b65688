//! Load for the benchmark: HTTP/1.1 over a Unix socket or TCP, one request in flight per
//! connection.
//!
//! It shares the machine with the server it drives, so it is made to cost little: requests
//! are laid out before the clock starts, one thread serves every connection, and an answer
//! is read no further than its framing demands. An answer that is not a complete 200 ends
//! the run with an error. It prints one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr)] // its result is what it prints

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match linux::run(&argh::from_env()) {
        Ok(report) => {
            println!("{report}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-load: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("bench-load: it waits with epoll, so it runs on Linux only");
    std::process::ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use argh::FromArgs;
    use rustix::buffer::spare_capacity;
    use rustix::event::epoll;

    /// Sends requests to a server, and prints how many were answered. Header lines in
    /// `BENCH_LOAD_HEADERS` are added to each: a token has no place on a command line.
    #[derive(FromArgs)]
    pub struct Options {
        /// the server's Unix socket
        #[argh(option)]
        socket: Option<PathBuf>,
        /// the server's TCP address and port, instead
        #[argh(option)]
        tcp: Option<String>,
        /// how many connections, each with one request in flight (1)
        #[argh(option, default = "1")]
        connections: usize,
        /// how long to count (2)
        #[argh(option, default = "2.0")]
        seconds: f64,
        /// how long to run before counting (0.2)
        #[argh(option, default = "0.2")]
        warmup: f64,
        /// send this many requests instead, and count every one
        #[argh(option)]
        requests: Option<u64>,
        /// the method (GET)
        #[argh(option, default = "String::from(\"GET\")")]
        method: String,
        /// the path; a {n} in it, or in the body, counts up to --keys
        #[argh(option, default = "String::from(\"/\")")]
        path: String,
        /// how many different requests there are, where {n} is used (1)
        #[argh(option, default = "1")]
        keys: usize,
        /// a JSON body
        #[argh(option)]
        body: Option<String>,
        /// what the body is called (application/json)
        #[argh(option, default = "String::from(\"application/json\")")]
        content_type: String,
        /// make a connection for every request, and read it to its end
        #[argh(switch)]
        close: bool,
    }

    type Outcome<T> = Result<T, String>;

    /// A server that says nothing for this long has failed.
    const PATIENCE: Duration = Duration::from_secs(10);

    pub fn run(options: &Options) -> Outcome<String> {
        if options.connections == 0 || options.keys == 0 {
            return Err("--connections and --keys start at 1".into());
        }
        let server = match (&options.socket, &options.tcp) {
            (Some(socket), None) => Server::Unix(socket.clone()),
            (None, Some(address)) => Server::Tcp(address.clone()),
            _ => return Err("one of --socket and --tcp names the server".into()),
        };
        let headers = std::env::var("BENCH_LOAD_HEADERS").unwrap_or_default();
        let headers = headers.lines().flat_map(|line| [line, "\r\n"]).collect::<String>();
        let requests = (0..options.keys).map(|n| render(options, &headers, n)).collect();
        let mut meter = Meter::start(options, requests)?;
        match (options.connections, options.close) {
            (1, false) => one_kept(&server, &mut meter)?,
            (1, true) => one_closing(&server, &mut meter)?,
            (_, closing) => many(&server, options.connections, closing, &mut meter)?,
        }
        meter.report()
    }

    /// The bytes of request `n`.
    fn render(options: &Options, headers: &str, n: usize) -> Vec<u8> {
        let number = n.to_string();
        let path = options.path.replace("{n}", &number);
        let connection = if options.close { "Connection: close\r\n" } else { "" };
        let method = &options.method;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: credential-vault\r\n{headers}{connection}");
        match options.body.as_ref().map(|body| body.replace("{n}", &number)) {
            None => format!("{head}\r\n"),
            Some(body) => format!(
                "{head}Content-Type: {}\r\nContent-Length: {}\r\n\r\n{body}",
                options.content_type,
                body.len()
            ),
        }
        .into_bytes()
    }

    /// Whom to ask.
    enum Server {
        Unix(PathBuf),
        Tcp(String),
    }

    /// A connection to it.
    enum Stream {
        Unix(UnixStream),
        Tcp(TcpStream),
    }

    impl Stream {
        fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
            match self {
                Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
                Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            }
        }
    }

    impl Read for Stream {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self {
                Self::Unix(stream) => stream.read(buffer),
                Self::Tcp(stream) => stream.read(buffer),
            }
        }
    }

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self {
                Self::Unix(stream) => stream.write(bytes),
                Self::Tcp(stream) => stream.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Stream {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self {
                Self::Unix(stream) => stream.as_fd(),
                Self::Tcp(stream) => stream.as_fd(),
            }
        }
    }

    /// One connection that is kept. Blocking: nothing else is waited for.
    fn one_kept(server: &Server, meter: &mut Meter) -> Outcome<()> {
        let mut stream = connect(server)?;
        stream.set_read_timeout(PATIENCE).map_err(io_error("set a read timeout"))?;
        let mut buffer = vec![0; READ_AT_ONCE];
        let mut reply = Reply::default();
        let mut began = Instant::now();
        while let Some(request) = meter.next(began) {
            stream.write_all(request).map_err(io_error("send a request"))?;
            while !reply.feed(received(&mut stream, &mut buffer)?)? {}
            let now = Instant::now();
            meter.count(began, now, reply.take_length());
            began = now;
        }
        Ok(())
    }

    /// A connection for every request, one after the other.
    fn one_closing(server: &Server, meter: &mut Meter) -> Outcome<()> {
        let mut buffer = vec![0; READ_AT_ONCE];
        let mut reply = Reply::default();
        let mut began = Instant::now();
        while let Some(request) = meter.next(began) {
            let mut stream = connect(server)?;
            stream.set_read_timeout(PATIENCE).map_err(io_error("set a read timeout"))?;
            stream.write_all(request).map_err(io_error("send a request"))?;
            while !reply.feed(received(&mut stream, &mut buffer)?)? {}
            let rest = stream.read(&mut buffer).map_err(io_error("read to the end"))?;
            if rest > 0 {
                return Err("the server sent more than its answer".into());
            }
            let now = Instant::now();
            meter.count(began, now, reply.take_length());
            began = now;
        }
        Ok(())
    }

    /// One of the connections that [`many`] serves.
    struct Slot {
        stream: Stream,
        reply: Reply,
        began: Instant,
        answered: bool,
    }

    /// Many connections on one thread. The streams are blocking ones that are read once
    /// for each time the poller calls them readable, so no read waits.
    fn many(server: &Server, connections: usize, closing: bool, meter: &mut Meter) -> Outcome<()> {
        let poller =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os_error("create a poller"))?;
        let mut buffer = vec![0; READ_AT_ONCE];
        let mut slots = Vec::with_capacity(connections);
        for index in 0..connections {
            slots.push(Slot {
                stream: watched(server, &poller, index)?,
                reply: Reply::default(),
                began: Instant::now(),
                answered: false,
            });
        }
        let mut busy = 0;
        let now = Instant::now();
        for slot in &mut slots {
            slot.began = now;
            busy += usize::from(send(slot, meter)?);
        }
        let patience = rustix::event::Timespec::try_from(PATIENCE)
            .map_err(|_| "the timeout does not fit".to_owned())?;
        let mut events: Vec<epoll::Event> = Vec::with_capacity(connections);
        while busy > 0 {
            events.clear();
            match epoll::wait(&poller, spare_capacity(&mut events), Some(&patience)) {
                Ok(0) => return Err(format!("no answer within {PATIENCE:?}")),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(os_error("wait")(error)),
            }
            for event in events.drain(..) {
                let index = usize::try_from(event.data.u64()).map_err(|error| error.to_string())?;
                let slot = &mut slots[index];
                let size = slot.stream.read(&mut buffer).map_err(io_error("read an answer"))?;
                if size > 0 {
                    if slot.answered {
                        return Err("the server sent more than its answer".into());
                    }
                    slot.answered = slot.reply.feed(&buffer[..size])?;
                    if closing || !slot.answered {
                        continue;
                    }
                } else if !slot.answered {
                    return Err("the server closed the connection before its answer ended".into());
                }
                let now = Instant::now();
                meter.count(slot.began, now, slot.reply.take_length());
                slot.began = now;
                slot.answered = false;
                if closing {
                    // The old stream closes here, which takes it off the poller.
                    slot.stream = watched(server, &poller, index)?;
                }
                busy -= usize::from(!send(slot, meter)?);
            }
        }
        Ok(())
    }

    fn watched(server: &Server, poller: &impl std::os::fd::AsFd, index: usize) -> Outcome<Stream> {
        let stream = connect(server)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(poller, &stream, data, epoll::EventFlags::IN)
            .map_err(os_error("watch a connection"))?;
        Ok(stream)
    }

    /// Sends the next request, if there is one.
    fn send(slot: &mut Slot, meter: &mut Meter) -> Outcome<bool> {
        let Some(request) = meter.next(slot.began) else { return Ok(false) };
        slot.stream.write_all(request).map_err(io_error("send a request"))?;
        Ok(true)
    }

    fn connect(server: &Server) -> Outcome<Stream> {
        let stream = match server {
            Server::Unix(socket) => UnixStream::connect(socket).map(Stream::Unix),
            Server::Tcp(address) => TcpStream::connect(address)
                .and_then(|stream| stream.set_nodelay(true).map(|()| Stream::Tcp(stream))),
        };
        stream.map_err(io_error("connect"))
    }

    /// The bytes of one read; the end of the stream is an error.
    fn received<'b>(stream: &mut Stream, buffer: &'b mut [u8]) -> Outcome<&'b [u8]> {
        let size = stream.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => format!("no answer within {PATIENCE:?}"),
            _ => io_error("read an answer")(error),
        })?;
        if size == 0 {
            return Err("the server closed the connection before its answer ended".into());
        }
        Ok(&buffer[..size])
    }

    fn io_error(doing: &'static str) -> impl Fn(io::Error) -> String {
        move |error| format!("cannot {doing}: {error}")
    }

    fn os_error(doing: &'static str) -> impl Fn(rustix::io::Errno) -> String {
        move |error| format!("cannot {doing}: {error}")
    }

    /// Enough for a long listing to arrive in few reads.
    const READ_AT_ONCE: usize = 256 * 1024;

    /// Where in an answer its next byte belongs.
    #[derive(Default)]
    enum Place {
        #[default]
        Head,
        Body {
            left: u64,
        },
        /// Within a chunk's size line, of which this much has come.
        ChunkSize(Vec<u8>),
        /// Within a chunk and the line end that follows it.
        Chunk {
            left: u64,
        },
        /// After the last chunk: trailers end at the first empty line.
        Trailer {
            line: usize,
        },
    }

    /// Follows one answer's framing.
    #[derive(Default)]
    struct Reply {
        place: Place,
        /// The part of a head that came so far, where it came in pieces.
        head: Vec<u8>,
        length: u64,
    }

    impl Reply {
        /// Body bytes of the answer that ended, and readiness for the next.
        fn take_length(&mut self) -> u64 {
            std::mem::take(&mut self.length)
        }

        /// Whether the answer ends with these bytes. Bytes beyond its end are an error:
        /// nothing else was asked for.
        fn feed(&mut self, mut data: &[u8]) -> Outcome<bool> {
            while !data.is_empty() {
                let (used, ended) = self.step(data)?;
                data = &data[used..];
                if ended {
                    self.place = Place::Head;
                    return match data.len() {
                        0 => Ok(true),
                        more => Err(format!("the server sent {more} bytes more than its answer")),
                    };
                }
            }
            Ok(false)
        }

        /// How many of the bytes were used, and whether the answer ended with them.
        fn step(&mut self, data: &[u8]) -> Outcome<(usize, bool)> {
            match &mut self.place {
                Place::Head => self.read_head(data),
                Place::Body { left } => {
                    let used = take(left, data);
                    self.length += used as u64;
                    Ok((used, *left == 0))
                }
                Place::ChunkSize(line) => {
                    let end = data.iter().position(|&byte| byte == b'\n');
                    let used = end.map_or(data.len(), |at| at + 1);
                    line.extend_from_slice(&data[..used]);
                    if end.is_some() {
                        let httparse::Status::Complete((_, size)) =
                            httparse::parse_chunk_size(line)
                                .map_err(|_| "a chunk has no valid size".to_owned())?
                        else {
                            return Err("a chunk has no valid size".into());
                        };
                        self.length += size;
                        self.place = match size {
                            0 => Place::Trailer { line: 0 },
                            _ => Place::Chunk { left: size + 2 },
                        };
                    }
                    Ok((used, false))
                }
                Place::Chunk { left } => {
                    let used = take(left, data);
                    if *left == 0 {
                        self.place = Place::ChunkSize(Vec::new());
                    }
                    Ok((used, false))
                }
                Place::Trailer { line } => {
                    let empty = match data[0] {
                        b'\n' => std::mem::take(line) == 0,
                        byte => {
                            *line += usize::from(byte != b'\r');
                            false
                        }
                    };
                    Ok((1, empty))
                }
            }
        }

        fn read_head(&mut self, data: &[u8]) -> Outcome<(usize, bool)> {
            if self.head.is_empty() {
                let Some((size, place)) = parse_head(data)? else {
                    self.head.extend_from_slice(data);
                    return Ok((data.len(), false));
                };
                return Ok((size, self.enter(place)));
            }
            let before = self.head.len();
            self.head.extend_from_slice(data);
            let Some((size, place)) = parse_head(&self.head)? else {
                return Ok((data.len(), false));
            };
            self.head.clear();
            Ok((size - before, self.enter(place)))
        }

        /// Goes on to the body; whether there is none.
        fn enter(&mut self, place: Place) -> bool {
            self.place = place;
            matches!(self.place, Place::Body { left: 0 })
        }
    }

    /// Takes what is `left` out of `data`; how much that was.
    fn take(left: &mut u64, data: &[u8]) -> usize {
        let used = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
        *left -= used as u64;
        used
    }

    /// The size of the head and how its body is framed; `None` when the head goes on.
    fn parse_head(data: &[u8]) -> Outcome<Option<(usize, Place)>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let size = match response.parse(data) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("not an HTTP answer: {error}")),
        };
        if response.code != Some(200) {
            return Err(format!(
                "the server answered {} {}",
                response.code.unwrap_or_default(),
                response.reason.unwrap_or_default()
            ));
        }
        for header in &*response.headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let left = std::str::from_utf8(header.value)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or("Content-Length is not a number")?;
                return Ok(Some((size, Place::Body { left })));
            }
            if header.name.eq_ignore_ascii_case("transfer-encoding")
                && header.value.eq_ignore_ascii_case(b"chunked")
            {
                return Ok(Some((size, Place::ChunkSize(Vec::new()))));
            }
        }
        Err("the answer has neither Content-Length nor chunks".into())
    }

    /// Deals out requests until the run is over, and counts answers.
    struct Meter {
        requests: Vec<Vec<u8>>,
        next: usize,
        /// Requests yet to be sent, when it is their number that ends the run.
        left: Option<u64>,
        counted_from: Instant,
        until: Instant,
        last: Instant,
        answers: u64,
        bytes: u64,
        latencies: Histogram,
    }

    impl Meter {
        fn start(options: &Options, requests: Vec<Vec<u8>>) -> Outcome<Self> {
            let seconds = |value| {
                Duration::try_from_secs_f64(value)
                    .map_err(|error| format!("not a number of seconds: {error}"))
            };
            let warmup = if options.requests.is_some() { 0.0 } else { options.warmup };
            let counted_from = Instant::now() + seconds(warmup)?;
            Ok(Self {
                requests,
                next: 0,
                left: options.requests,
                counted_from,
                until: counted_from + seconds(options.seconds)?,
                last: counted_from,
                answers: 0,
                bytes: 0,
                latencies: Histogram::new(),
            })
        }

        /// The next request, or `None` when the run is over.
        fn next(&mut self, now: Instant) -> Option<&[u8]> {
            match &mut self.left {
                Some(left) => *left = left.checked_sub(1)?,
                None if now >= self.until => return None,
                None => {}
            }
            let request = &self.requests[self.next];
            self.next = if self.next + 1 == self.requests.len() { 0 } else { self.next + 1 };
            Some(request)
        }

        fn count(&mut self, began: Instant, now: Instant, length: u64) {
            if now >= self.counted_from {
                self.answers += 1;
                self.bytes += length;
                self.last = now;
                self.latencies.add(now - began);
            }
        }

        #[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
        fn report(&self) -> Outcome<String> {
            let seconds = (self.last - self.counted_from).as_secs_f64();
            if self.answers == 0 || seconds <= 0.0 {
                return Err("nothing was answered in the time given".into());
            }
            Ok(format!(
                r#"{{"requests":{},"seconds":{seconds:.6},"rate":{:.1},"bytes_per_second":{:.0},"p50_us":{:.1},"p99_us":{:.1}}}"#,
                self.answers,
                self.answers as f64 / seconds,
                self.bytes as f64 / seconds,
                self.latencies.quantile(0.5) as f64 / 1e3,
                self.latencies.quantile(0.99) as f64 / 1e3,
            ))
        }
    }

    /// Latencies in nanoseconds, to 3 %: each power of two has 32 buckets.
    struct Histogram(Vec<u64>);

    impl Histogram {
        const STEPS: u32 = 5;

        fn new() -> Self {
            Self(vec![0; (64 - Self::STEPS as usize + 1) << Self::STEPS])
        }

        fn add(&mut self, latency: Duration) {
            let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            // Values below 32 have a bucket each; above, the top bit picks the power of
            // two and the five bits below it the bucket.
            let power = (u64::BITS - nanoseconds.leading_zeros()).saturating_sub(Self::STEPS + 1);
            let bucket = (u64::from(power) << Self::STEPS) + (nanoseconds >> power);
            if let Some(count) = usize::try_from(bucket).ok().and_then(|at| self.0.get_mut(at)) {
                *count += 1;
            }
        }

        /// The lower bound of the bucket below which this part of the latencies lies.
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        fn quantile(&self, part: f64) -> u64 {
            let wanted = (self.0.iter().sum::<u64>() as f64 * part).ceil() as u64;
            let mut seen = 0;
            for (bucket, count) in self.0.iter().enumerate() {
                seen += count;
                if seen >= wanted {
                    let bucket = bucket as u64;
                    let power = (bucket >> Self::STEPS).saturating_sub(1);
                    return (bucket - (power << Self::STEPS)) << power;
                }
            }
            0
        }
    }
}
