//! How fast the masker lets plain text through, against copying it through the same loop.
//!
//! Both take their turns within each round. It prints one line of JSON for each text and
//! number of values.
#![allow(clippy::print_stdout, clippy::print_stderr)] // its result is what it prints

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use argh::FromArgs;
use intentframe_credentials::Secret;
use intentframe_credentials::redact::Masker;

/// Measures the masker on log lines, and on the text of the files given.
#[derive(FromArgs)]
struct Options {
    /// how many rounds (5)
    #[argh(option, default = "5")]
    rounds: usize,
    /// how much text in each, in MB (32)
    #[argh(option, default = "32")]
    megabytes: usize,
    /// source text
    #[argh(positional)]
    files: Vec<PathBuf>,
}

/// What a relay reads at a time.
const PIECE: usize = 64 * 1024;

fn main() -> ExitCode {
    match run(&argh::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-mask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let size = options.megabytes * 1_000_000;
    let mut source = Vec::new();
    for file in &options.files {
        let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        source.extend_from_slice(&text);
    }
    if source.is_empty() || size == 0 || options.rounds == 0 {
        return Err("it needs a text, a size and a round".into());
    }
    let source = source.iter().copied().cycle().take(size).collect();
    for (name, text) in [("log lines", log_lines(size)), ("source", source)] {
        for count in [1, 20, 200] {
            let report = measure(&text, &values(count), options.rounds)?;
            println!(r#"{{"text":"{name}","values":{count},{report}}}"#);
        }
    }
    Ok(())
}

fn measure(text: &[u8], values: &[Secret], rounds: usize) -> Result<String, String> {
    let began = Instant::now();
    let mut masker = Masker::new(values);
    let prepared = began.elapsed().as_secs_f64() * 1e6;
    let mut passed = Vec::with_capacity(rounds);
    let mut copied = Vec::with_capacity(rounds);
    let mut output = Vec::with_capacity(2 * PIECE);
    for _ in 0..rounds {
        let mut written = 0;
        passed.push(rate(text, |piece| {
            output.clear();
            masker.mask(piece, &mut output);
            written += black_box(&output).len();
        }));
        output.clear();
        masker.finish(&mut output);
        if written + output.len() != text.len() {
            return Err("text without a value was changed".into());
        }
        copied.push(rate(text, |piece| {
            output.clear();
            output.extend_from_slice(piece);
            black_box(&output);
        }));
    }
    Ok(format!(r#""masked":{passed:.0?},"copied":{copied:.0?},"prepared_us":{prepared:.0}"#))
}

/// MB/s.
#[allow(clippy::cast_precision_loss)] // sizes stay far below 2^52
fn rate(text: &[u8], each: impl FnMut(&[u8])) -> f64 {
    let began = Instant::now();
    text.chunks(PIECE).for_each(each);
    text.len() as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// Tokens as providers make them: half of them begin alike.
fn values(count: usize) -> Vec<Secret> {
    let mut numbers = numbers();
    let mut token = |prefix: &str| {
        let mut token = prefix.to_owned();
        token.extend((0..40).map(|_| char::from(b'A' + (numbers() % 26) as u8)));
        Secret::new(token)
    };
    (0..count).map(|n| token(if n % 2 == 0 { "sk-proj-" } else { "" })).collect()
}

fn log_lines(size: usize) -> Vec<u8> {
    let mut numbers = numbers();
    let mut text = Vec::with_capacity(size + 256);
    while text.len() < size {
        let (request, status) = (numbers(), 200 + numbers() % 300);
        let (seconds, micros) = (numbers() % 60, numbers() % 1_000_000);
        let line = format!(
            "2026-11-24T07:01:{seconds:02}.{micros:06}Z INFO  api::http: \"GET \
             /v1/items/{request:016x}?limit=20 HTTP/1.1\" {status} {} bytes in {} us; \
             user=alice@example.org session={:08x} token=none\n",
            numbers() % 100_000,
            numbers() % 10_000,
            request >> 32,
        );
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(size);
    text
}

/// The same numbers in every run (splitmix64).
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 1_u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
