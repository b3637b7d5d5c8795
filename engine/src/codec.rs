//! Compression: encoding and decoding payloads, recognising the incompressible, and choosing the
//! level so that compression never throttles the device.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use voltar_format::frame::{Codec, Frame};
use voltar_format::{FormatError, Structure};
use zstd_safe::{CCtx, CParameter, DCtx};

use crate::error::{Error, ErrorKind, Result};
use crate::options::Compression;
use crate::pipeline::Gauge;

/// A payload is stored as it is unless compression saves at least a sixteenth: below that,
/// decoding costs more than reading.
const WORTH_SIXTEENTHS: usize = 15;

/// One step of the ladder that `auto` moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it is.
    Store,
    /// zstd.
    Zstd(i32),
}

/// From fastest to smallest; neighbours differ by roughly a fifth in speed. `voltar bench` shows
/// the levels on the machine at hand.
const LADDER: [Level; 11] = [
    Level::Store,
    Level::Zstd(-50),
    Level::Zstd(-24),
    Level::Zstd(-14),
    Level::Zstd(-9),
    Level::Zstd(-6),
    Level::Zstd(-4),
    Level::Zstd(-2),
    Level::Zstd(1),
    Level::Zstd(2),
    Level::Zstd(3),
];

/// Where `auto` starts: zstd -4.
const LADDER_START: usize = 6;

/// The fastest step that compresses; below it `auto` goes for single frames only.
const LADDER_LOWEST: usize = 1;

/// Frames between two decisions of `auto`: more than a pipeline holds, so that what a decision did
/// shows before the next one.
const WINDOW_FRAMES: u32 = 64;

/// Chooses the level of each frame; shared by all workers.
///
/// Two controls, because the pipeline holds milliseconds of work and a slow level takes that long
/// for one frame. The step moves slowly, one decision a window, to what the machine can keep up
/// with. A frame that finds the queue long is stored at once, whatever the step: the device shall
/// not wait for the step to come down.
#[derive(Debug)]
pub struct Pace {
    fixed: Option<Level>,
    step: AtomicUsize,
    frames: AtomicU32,
    crowded: AtomicU32,
    starved: AtomicU32,
    /// Items waiting for a worker at which the workers count as the bottleneck. At twice as many
    /// the device is about to wait.
    crowd: usize,
    /// Finished items at which the sink counts as the bottleneck.
    backlog: usize,
}

impl Pace {
    /// For `workers` threads and a pipeline of `items` items.
    pub fn new(compression: Compression, workers: usize, items: usize) -> Pace {
        let fixed = match compression {
            Compression::Auto => None,
            Compression::Store => Some(Level::Store),
            Compression::Zstd(level) => Some(Level::Zstd(level)),
        };
        Pace {
            fixed,
            step: AtomicUsize::new(LADDER_START),
            frames: AtomicU32::new(0),
            crowded: AtomicU32::new(0),
            starved: AtomicU32::new(0),
            crowd: (workers * 2).min(items / 2).max(1),
            backlog: (items / 2).max(1),
        }
    }

    /// The level for the next frame, by who waits for whom.
    ///
    /// Items piling up before the workers: they are the bottleneck, compress less. Workers idle
    /// while the source is slow, or finished items piling up before the sink: there is time,
    /// compress more.
    pub fn level(&self, gauge: &Gauge) -> Level {
        if let Some(level) = self.fixed {
            return level;
        }
        let step = self.step.load(Ordering::Relaxed);
        let waiting = gauge.waiting_for_work();
        let level = if gauge.waiting_for_consumer() >= self.backlog || waiting == 0 {
            self.starved.fetch_add(1, Ordering::Relaxed);
            step
        } else if waiting >= self.crowd * 2 {
            self.crowded.fetch_add(1, Ordering::Relaxed);
            0
        } else if waiting >= self.crowd {
            self.crowded.fetch_add(1, Ordering::Relaxed);
            (step - 1).max(LADDER_LOWEST)
        } else {
            step
        };
        if self.frames.fetch_add(1, Ordering::Relaxed) + 1 >= WINDOW_FRAMES {
            self.decide();
        }
        LADDER[level]
    }

    /// Down fast, up slowly: a step too high costs the device's time, a step too low some bytes.
    fn decide(&self) {
        self.frames.store(0, Ordering::Relaxed);
        let crowded = self.crowded.swap(0, Ordering::Relaxed);
        let starved = self.starved.swap(0, Ordering::Relaxed);
        let step = self.step.load(Ordering::Relaxed);
        let next = if crowded > WINDOW_FRAMES / 4 {
            step.saturating_sub(2).max(LADDER_LOWEST)
        } else if starved > WINDOW_FRAMES * 7 / 8 {
            (step + 1).min(LADDER.len() - 1)
        } else {
            step
        };
        self.step.store(next, Ordering::Relaxed);
    }
}

/// A worker's compressor; reused, because setting one up costs more than a frame.
pub struct Encoder {
    context: CCtx<'static>,
    level: Option<i32>,
}

impl Encoder {
    /// A compressor.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new() -> Result<Encoder> {
        let context = CCtx::try_create()
            .ok_or_else(|| Error::new(ErrorKind::Io, "no memory for a compressor"))?;
        Ok(Encoder { context, level: None })
    }

    /// Compresses `raw` into the start of `out` and says how many bytes it took. `None`: the
    /// payload is to be `raw` itself, because compression is off or not worth it. `out` holds at
    /// least as many bytes as `raw`.
    ///
    /// # Errors
    /// Only those of the library that are no property of the data.
    pub fn encode(&mut self, raw: &[u8], level: Level, out: &mut [u8]) -> Result<Option<usize>> {
        let Level::Zstd(level) = level else { return Ok(None) };
        if looks_incompressible(raw) {
            return Ok(None);
        }
        self.set_level(level)?;
        // The library fails when the output does not fit: that is how data that does not shrink
        // enough is noticed early, so the error is an answer.
        let worth = (raw.len() / 16 * WORTH_SIXTEENTHS).min(out.len());
        Ok(self.context.compress2(&mut out[..worth], raw).ok())
    }

    fn set_level(&mut self, level: i32) -> Result<()> {
        if self.level != Some(level) {
            self.context
                .set_parameter(CParameter::CompressionLevel(level))
                .map_err(|code| library_error("compression level", code))?;
            self.level = Some(level);
        }
        Ok(())
    }
}

/// A worker's decompressor.
pub struct Decoder(DCtx<'static>);

impl Decoder {
    /// A decompressor.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new() -> Result<Decoder> {
        DCtx::try_create()
            .map(Decoder)
            .ok_or_else(|| Error::new(ErrorKind::Io, "no memory for a decompressor"))
    }

    /// Decodes the payload of a checked frame into the start of `out`, which holds at least
    /// `frame.head.raw_len` bytes (at most 1 MiB), and returns the decoded bytes.
    ///
    /// # Errors
    /// F-028 if the payload does not decode to exactly `raw_len` bytes.
    pub fn decode<'o>(
        &mut self,
        frame: &Frame<'_>,
        out: &'o mut [u8],
    ) -> Result<&'o mut [u8], FormatError> {
        let raw_len = frame.head.raw_len as usize;
        let fail = |problem: String| FormatError::new(Structure::Frame, "F-028", problem);
        let out = out
            .get_mut(..raw_len)
            .ok_or_else(|| fail(format!("{raw_len} decoded bytes do not fit")))?;
        match frame.codec {
            // A stored payload is as long as its decoded form; decoding the head checked that.
            Codec::Store => out.copy_from_slice(frame.payload),
            Codec::Zstd => {
                let decoded = self
                    .0
                    .decompress(out, frame.payload)
                    .map_err(|code| fail(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
                if decoded != raw_len {
                    return Err(fail(format!("it decodes to {decoded} bytes, not {raw_len}")));
                }
            }
        }
        Ok(out)
    }
}

fn library_error(what: &str, code: usize) -> Error {
    let name = zstd_safe::get_error_name(code);
    Error::new(ErrorKind::InvalidRequest, format!("zstd refuses the {what}: {name}"))
}

/// Bytes sampled of every [`SAMPLE_STRIDE`].
const SAMPLE_LEN: usize = 1024;
const SAMPLE_STRIDE: usize = 32 << 10;

/// Whether a sample of the bytes is as mixed as random or compressed data is.
///
/// The order-0 entropy of a histogram, over about 3 % of the data: machine code and text lie
/// between 4 and 7 bits per byte, what a compressor left behind above 7.9. Data that fails the
/// test and would still shrink (long repeats of random bytes) exists, but not on disks.
fn looks_incompressible(raw: &[u8]) -> bool {
    if raw.len() < SAMPLE_STRIDE {
        return false;
    }
    let mut counts = [0u32; 256];
    let mut total = 0u32;
    for block in raw.chunks_exact(SAMPLE_STRIDE) {
        for byte in &block[SAMPLE_STRIDE / 2..SAMPLE_STRIDE / 2 + SAMPLE_LEN] {
            counts[usize::from(*byte)] += 1;
        }
        total += SAMPLE_LEN as u32;
    }
    entropy_bits(&counts, total) >= entropy_limit_bits(total)
}

fn entropy_bits(counts: &[u32; 256], total: u32) -> f64 {
    let total = f64::from(total);
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / total;
            -share * share.log2()
        })
        .sum()
}

/// A sample of n random bytes has 8 - 255 / (2 n ln 2) bits on average; a margin below that.
fn entropy_limit_bits(total: u32) -> f64 {
    8.0 - 255.0 / (2.0 * f64::from(total) * std::f64::consts::LN_2) - 0.06
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use voltar_format::checksum;
    use voltar_format::frame::{self, ChunkEntry, ItemKind};

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        rand::rngs::SmallRng::seed_from_u64(seed).fill(&mut bytes[..]);
        bytes
    }

    fn text(len: usize) -> Vec<u8> {
        let words = [&b"volume "[..], b"archive ", b"snapshot ", b"chunk\n", b"0x7f3a "];
        let picks = noise(len, 5);
        let mut bytes: Vec<u8> =
            picks.iter().flat_map(|pick| words[usize::from(*pick) % 5]).copied().collect();
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn noise_is_recognised_and_text_is_not() {
        for len in [32 << 10, 64 << 10, 1 << 20] {
            for seed in 0..50 {
                assert!(looks_incompressible(&noise(len, seed)), "{len} bytes, seed {seed}");
            }
            assert!(!looks_incompressible(&text(len)));
        }
    }

    fn frame_bytes(raw: &[u8], codec: Codec, payload: &[u8]) -> Vec<u8> {
        let entry = ChunkEntry::new(ItemKind::Chunk, checksum::chunk_id(raw), 0, raw.len());
        frame::encode(codec, &[entry], payload)
    }

    #[test]
    fn every_level_round_trips() {
        let mut encoder = Encoder::new().unwrap();
        let mut decoder = Decoder::new().unwrap();
        let raw = text(200_001);
        let mut out = vec![0; raw.len()];
        for level in LADDER {
            let encoded = encoder.encode(&raw, level, &mut out).unwrap();
            let bytes = match encoded {
                Some(len) => frame_bytes(&raw, Codec::Zstd, &out[..len]),
                None => frame_bytes(&raw, Codec::Store, &raw),
            };
            assert_eq!(encoded.is_none(), level == Level::Store);
            let mut decoded = vec![0; 1 << 20];
            let frame = Frame::decode(&bytes).unwrap();
            assert_eq!(decoder.decode(&frame, &mut decoded).unwrap(), raw);
        }
    }

    #[test]
    fn noise_is_stored_at_every_level() {
        let raw = noise(1 << 20, 3);
        let mut out = vec![0; raw.len()];
        for level in LADDER {
            assert_eq!(Encoder::new().unwrap().encode(&raw, level, &mut out).unwrap(), None);
        }
        // Short data is not sampled; the library's own bail-out says the same.
        let short = &raw[..20_000];
        assert_eq!(Encoder::new().unwrap().encode(short, Level::Zstd(3), &mut out).unwrap(), None);
    }

    #[test]
    fn f_028_a_payload_that_decodes_to_another_length_is_refused() {
        let raw = text(100_000);
        let mut out = vec![0; raw.len()];
        let len = Encoder::new().unwrap().encode(&raw, Level::Zstd(1), &mut out).unwrap().unwrap();
        for claimed in [99_999, 100_001] {
            let claim = vec![0; claimed];
            let bytes = frame_bytes(&claim, Codec::Zstd, &out[..len]);
            let frame = Frame::decode(&bytes).unwrap();
            let mut decoded = vec![0; 1 << 20];
            let error = Decoder::new().unwrap().decode(&frame, &mut decoded).unwrap_err();
            assert_eq!(error.requirement, "F-028");
        }
        let garbage = frame_bytes(&raw, Codec::Zstd, &noise(50_000, 1));
        let frame = Frame::decode(&garbage).unwrap();
        Decoder::new().unwrap().decode(&frame, &mut vec![0; 1 << 20]).unwrap_err();
    }

    #[test]
    fn pace_follows_the_bottleneck() {
        let pace = Pace::new(Compression::Auto, 2, 32);
        let settle = |pace: &Pace, gauge: &Gauge| {
            for _ in 0..LADDER.len() * WINDOW_FRAMES as usize {
                pace.level(gauge);
            }
        };
        let (calm, idle, crowded, full) =
            (Gauge::of(2, 3), Gauge::of(0, 0), Gauge::of(5, 0), Gauge::of(20, 0));
        assert_eq!(pace.level(&calm), Level::Zstd(-4));
        settle(&pace, &calm);
        assert_eq!(pace.level(&calm), Level::Zstd(-4));
        settle(&pace, &idle);
        assert_eq!(pace.level(&calm), Level::Zstd(3));
        // A long queue is relieved at once, not when the step has come down.
        assert_eq!(pace.level(&full), Level::Store);
        assert_eq!(pace.level(&calm), Level::Zstd(3));
        settle(&pace, &crowded);
        assert_eq!(pace.level(&calm), Level::Zstd(-50));
        // A sink that is behind leaves time, however long the queue before the workers.
        settle(&pace, &Gauge::of(10, 20));
        assert_eq!(pace.level(&Gauge::of(10, 20)), Level::Zstd(3));
    }

    #[test]
    fn a_fixed_level_stays() {
        let fixed = Pace::new(Compression::Zstd(7), 2, 32);
        (0..500).for_each(|_| assert_eq!(fixed.level(&Gauge::of(20, 0)), Level::Zstd(7)));
    }
}
