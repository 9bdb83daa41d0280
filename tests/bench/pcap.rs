//! The pcap file format: a header of 24 bytes, then each frame behind 16 bytes of times and lengths
//! (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>), little-endian.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::Failure;

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;

pub fn write(path: &Path, frames: impl Iterator<Item = Vec<u8>>) -> Result<(), Failure> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    // Magic number, version 2.4, no time zone or accuracy, longest frame, link type.
    for word in [MAGIC, 2 | 4 << 16, 0, 0, 65_535, ETHERNET] {
        file.write_all(&word.to_le_bytes())?;
    }
    for frame in frames {
        let length = (frame.len() as u32).to_le_bytes();
        file.write_all(&[[0; 4], [0; 4], length, length].concat())?;
        file.write_all(&frame)?;
    }
    Ok(file.flush()?)
}

/// The frames of a file that was read whole.
pub fn frames(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = file.get(24..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_at_checked(16)?;
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let (frame, tail) = tail.split_at_checked(length)?;
        rest = tail;
        Some(frame)
    })
}
