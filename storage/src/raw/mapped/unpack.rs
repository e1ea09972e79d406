//! The compressions of Parquet's pages, unpacked to the size that a page says and not a byte more.
//!
//! The decoder's own do not stop there: some kilobytes of Brotli or gzip would fill the memory.

use std::io::{self, Read};

use brotli_decompressor::Decompressor;
use flate2::read::MultiGzDecoder;
use lz4_flex::block::decompress_into;
use lz4_flex::frame::FrameDecoder;
use parquet::basic::Compression;
use ruzstd::decoding::StreamingDecoder;

/// More than a byte of Snappy, LZ4 or deflate can be unpacked to.
const MAX_RATIO: usize = 1032;

/// Unpacks `packed`, which must give `size` bytes.
pub(super) fn unpack(codec: Compression, packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let unpacked = match codec {
        Compression::UNCOMPRESSED => Ok(packed.to_vec()),
        Compression::SNAPPY => block(packed, size, |out| {
            snap::raw::Decoder::new().decompress(packed, out).map_err(io::Error::other)
        }),
        Compression::LZ4_RAW => lz4_block(packed, size),
        // The first writers of this name meant Hadoop's blocks; others meant frames, or a block alone.
        Compression::LZ4 => hadoop_lz4(packed, size)
            .or_else(|_| stream(FrameDecoder::new(packed), size))
            .or_else(|_| lz4_block(packed, size)),
        Compression::GZIP(_) => stream(MultiGzDecoder::new(packed), size),
        Compression::BROTLI(_) => stream(Decompressor::new(packed, 1 << 12), size),
        Compression::ZSTD(_) => {
            let decoder = StreamingDecoder::new(packed).map_err(|error| error.to_string())?;
            stream(decoder, size)
        }
        Compression::LZO => return Err("compression with LZO, which can't be read".into()),
    };
    unpacked.map_err(|error| {
        let name = codec.to_string();
        let name = name.split('(').next().unwrap_or_default();
        format!("its {name} does not give {size} bytes: {error}")
    })
}

/// Compressions of one block, whose place must be there before.
fn block(
    packed: &[u8],
    size: usize,
    unpack: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    if size / MAX_RATIO > packed.len() {
        return Err(io::Error::other(format!("{} bytes can't", packed.len())));
    }
    let mut out = vec![0; size];
    let found = unpack(&mut out)?;
    if found == size { Ok(out) } else { Err(wrong(found)) }
}

fn wrong(found: usize) -> io::Error {
    io::Error::other(format!("it gives {found}"))
}

fn lz4_block(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    block(packed, size, |out| decompress_into(packed, out).map_err(io::Error::other))
}

/// Hadoop's blocks: size and packed size in front of each, big-endian.
fn hadoop_lz4(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    block(packed, size, |out| {
        let (mut rest, mut at) = (packed, 0);
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *head;
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            let packed = u32::from_be_bytes([e, f, g, h]) as usize;
            let place = out.get_mut(at..).and_then(|out| out.get_mut(..len));
            let (Some(packed), Some(place)) = (after.get(..packed), place) else {
                return Err(io::Error::other("no blocks of Hadoop"));
            };
            if decompress_into(packed, place).map_err(io::Error::other)? != len {
                return Err(io::Error::other("no blocks of Hadoop"));
            }
            (at, rest) = (at + len, after.get(packed.len()..).unwrap_or_default());
        }
        if rest.is_empty() { Ok(at) } else { Err(io::Error::other("no blocks of Hadoop")) }
    })
}

/// Bytes for which there is room at first.
const ROOM: usize = 1 << 20;

/// Compressions that are read as a stream: memory grows with what comes, whatever was said.
fn stream(mut source: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    while out.len() < size {
        let more = out.len().max(ROOM).min(size - out.len());
        out.reserve_exact(more);
        if source.by_ref().take(more as u64).read_to_end(&mut out)? < more {
            return Err(wrong(out.len()));
        }
    }
    match source.read(&mut [0])? {
        0 => Ok(out),
        _ => Err(io::Error::other("it gives more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lz4_flex::block::compress;
    use std::io::Write;

    const TEXT: &[u8] = b"to be or not to be, that is to be or not to be";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn the_old_lz4_has_three_meanings() {
        let be = |len: usize| (len as u32).to_be_bytes();
        let blocks: Vec<u8> = TEXT
            .chunks(20)
            .flat_map(|part| {
                let packed = compress(part);
                [&be(part.len())[..], &be(packed.len()), &packed].concat()
            })
            .collect();
        let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
        frame.write_all(TEXT).unwrap();
        for packed in [blocks, frame.finish().unwrap(), compress(TEXT)] {
            assert_eq!(unpack(Compression::LZ4, &packed, TEXT.len()).unwrap(), TEXT);
            assert!(unpack(Compression::LZ4, &packed, TEXT.len() - 1).is_err());
            assert!(unpack(Compression::LZ4, &packed, TEXT.len() + 1).is_err());
        }
    }

    #[test]
    fn s3_nothing_is_unpacked_beyond_the_size() {
        let codec = Compression::GZIP(Default::default());
        // 8 MiB of nothing, which a page says to be 1,000 bytes.
        let bomb = gzip(&vec![0; 8 << 20]);
        let error = unpack(codec, &bomb, 1000).unwrap_err();
        assert!(error.contains("it gives more"), "{error}");
        let error = unpack(Compression::SNAPPY, &[1, 0, 7], 1 << 28).unwrap_err();
        assert!(error.contains("3 bytes can't"), "{error}");
        for codec in [codec, Compression::SNAPPY, Compression::LZ4, Compression::LZ4_RAW] {
            assert!(unpack(codec, TEXT, 1 << 20).is_err());
        }
        for codec in
            [Compression::BROTLI(Default::default()), Compression::ZSTD(Default::default())]
        {
            assert!(unpack(codec, TEXT, 1 << 28).is_err());
        }
        assert!(unpack(Compression::LZO, TEXT, 1).is_err());
    }
}
