//! ureq's buffers, wiped as soon as what is in them has gone on.

use ureq::unversioned::transport::Buffers;
use zeroize::{Zeroize, Zeroizing};

const INPUT_BYTES: usize = 32 * 1024;
const OUTPUT_BYTES: usize = 16 * 1024;

/// The buffers of one connection. ureq's own are neither wiped nor hidden from `Debug`.
#[derive(Default)]
pub(super) struct WipedBuffers {
    output: Zeroizing<Vec<u8>>,
    /// Where ureq puts the plain body before it writes it into `output`.
    scratch: Zeroizing<Vec<u8>>,
    input: Zeroizing<Vec<u8>>,
    consumed: usize,
    filled: usize,
    progress: bool,
}

impl WipedBuffers {
    /// Forgets what was sent. The body went through `scratch` in pieces no longer than
    /// what was sent of it.
    pub(super) fn wipe_output(&mut self, amount: usize) {
        self.output[..amount].zeroize();
        let copied = amount.min(self.scratch.len());
        self.scratch[..copied].zeroize();
    }

    /// What is to be sent.
    pub(super) fn output_up_to(&self, amount: usize) -> &[u8] {
        &self.output[..amount]
    }

    fn ensure_output(&mut self) {
        self.output.resize(OUTPUT_BYTES, 0);
    }
}

impl Buffers for WipedBuffers {
    fn output(&mut self) -> &mut [u8] {
        self.ensure_output();
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.resize(INPUT_BYTES, 0);
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            let left = self.filled - self.consumed;
            self.input[left..self.filled].zeroize();
            (self.consumed, self.filled) = (0, left);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        let end = self.consumed + amount;
        self.input[self.consumed..end].zeroize();
        self.consumed = end;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.ensure_output();
        self.scratch.resize(OUTPUT_BYTES, 0);
        (&mut self.scratch, &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.filled > self.consumed && self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_on_is_wiped() {
        let mut buffers = WipedBuffers::default();
        buffers.input_append_buf()[..6].copy_from_slice(b"canary");
        buffers.input_appended(6);
        buffers.input_consume(4);
        assert_eq!(buffers.input(), b"ry");
        assert_eq!(&buffers.input[..6], b"\0\0\0\0ry");
        buffers.input_append_buf();
        assert_eq!(&buffers.input[..6], b"ry\0\0\0\0");
        assert_eq!(buffers.input(), b"ry");

        let (scratch, output) = buffers.tmp_and_output();
        scratch[..6].copy_from_slice(b"canary");
        output[..6].copy_from_slice(b"canary");
        buffers.wipe_output(6);
        assert!(buffers.output.iter().chain(buffers.scratch.iter()).all(|byte| *byte == 0));
    }
}
