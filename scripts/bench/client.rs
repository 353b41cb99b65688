//! Reads one credential again and again, through the client or through a minimal hand-made
//! one. Each thread has one request in flight. Prints reads per second.
//!
//!     bench-client SOCKET THREADS SECONDS client|minimal
#![allow(clippy::print_stdout, reason = "the rate is the output")]

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    unix::run()
}

#[cfg(unix)]
mod unix {
    use std::hint::black_box;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use intentframe_credentials::client::VaultClient;
    use intentframe_credentials::{CredentialRef, Secret};

    type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

    pub fn run() -> Outcome<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [socket, threads, seconds, way] = arguments.as_slice() else {
            return Err("usage: bench-client SOCKET THREADS SECONDS client|minimal".into());
        };
        let (threads, length) = (threads.parse()?, Duration::from_secs_f64(seconds.parse()?));
        let client = VaultClient::new(socket);
        let at = CredentialRef::parse("bench", "key0")?;
        let began = Instant::now();
        let total = thread::scope(|scope| -> Outcome<u32> {
            let read_until_the_end = || -> Outcome<u32> {
                let mut stream = UnixStream::connect(socket)?;
                let mut count = 0;
                while began.elapsed() < length {
                    if way == "minimal" {
                        black_box(read_by_hand(&mut stream)?);
                    } else {
                        black_box(client.get(&at)?.ok_or("no such credential")?);
                    }
                    count += 1;
                }
                Ok(count)
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(read_until_the_end)).collect();
            let mut total = 0;
            for thread in running {
                total += thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(total)
        })?;
        println!("{:.1}", f64::from(total) / began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Sends a request and takes the value out of its answer.
    fn read_by_hand(stream: &mut UnixStream) -> Outcome<Secret> {
        #[derive(serde::Deserialize)]
        struct Answer {
            value: String,
        }

        stream.write_all(b"GET /v1/credentials/bench/key0 HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::with_capacity(4096);
        loop {
            let mut some = [0; 4096];
            let count = stream.read(&mut some)?;
            if count == 0 {
                return Err("the connection ended".into());
            }
            answer.extend_from_slice(&some[..count]);
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut head = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(start) = head.parse(&answer)? else { continue };
            let mut headers = head.headers.iter();
            let length = headers.find(|it| it.name.eq_ignore_ascii_case("content-length"));
            let length: usize = std::str::from_utf8(length.ok_or("no length")?.value)?.parse()?;
            if answer.len() < start + length {
                continue;
            }
            if head.code != Some(200) {
                return Err("the answer is not 200".into());
            }
            let Answer { value } = serde_json::from_slice(&answer[start..start + length])?;
            return Ok(Secret::new(value));
        }
    }
}
