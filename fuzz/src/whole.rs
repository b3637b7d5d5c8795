//! Whole archives: any bytes, edited ones, forged ones, interrupted ones.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use voltar_engine::codec::Level;
use voltar_engine::device::Device;
use voltar_engine::options::{Compression, Delta, OnDamage, Selector};
use voltar_format::checksum::{chunk_id, node_id};
use voltar_format::limits::{FRAME_CHUNKS_MAX, FRAME_RAW_LEN_MAX};
use voltar_format::manifest::Volume;
use voltar_format::map::{Entry, MapBuilder, Node, Shape, span_of_entry};
use voltar_format::{Id, LogOffset};

use crate::checks::{self, exercise};
use crate::edits;
use crate::forge::{self, Forge, Item, manifest, volume, write_volume};
use crate::repair::{Repair, repair};

/// Archives longer than this are cut: they cost time and find nothing more.
const LEN_MAX: usize = 1 << 20;

/// The bytes as an archive.
pub fn archive(data: &[u8]) {
    exercise(&data[..data.len().min(LEN_MAX)]);
}

/// Compressible bytes of which no two chunks are alike.
pub fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at / 7) as u8).wrapping_mul(31) ^ (at / 4096) as u8 ^ seed).collect()
}

/// Three snapshots of one volume, as a writer would leave them.
pub static BASE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut forge = Forge::default();
    for (number, bytes) in (0..).zip(versions()) {
        let root = write_volume(&mut forge, &bytes, 4096);
        let volumes = vec![volume("disk", bytes.len() as u64, 4096, root)];
        forge.commit(&manifest(volumes, number));
    }
    forge.finish()
});

fn versions() -> [Vec<u8>; 3] {
    let first = content(7 * 4096 + 100, 1);
    let mut second = first.clone();
    second[4096..12288].fill(0);
    second[20000] ^= 0x55;
    let mut third = content(9 * 4096, 1);
    third[..4096].fill(0);
    [first, second, third]
}

/// One snapshot, and behind it what an interrupted session sealed; and where the tail begins.
pub static INTERRUPTED: LazyLock<(Vec<u8>, usize)> = LazyLock::new(|| {
    let mut forge = Forge::default();
    let [first, ..] = versions();
    let root = write_volume(&mut forge, &first, 4096);
    forge.commit(&manifest(vec![volume("disk", first.len() as u64, 4096, root)], 0));
    let committed = forge.committed();
    // What the next backup will want to store, in two segments, a run between them and one open.
    let source = checks::source();
    let mut items = (0..).zip(source.chunks(4096)).map(|(n, c)| Item::chunk(c.to_vec(), n));
    let mut frame = |forge: &mut Forge, count| {
        let items: Vec<Item> = items.by_ref().take(count).collect();
        forge.frame(&items, Level::Store);
    };
    frame(&mut forge, 3);
    frame(&mut forge, 2);
    forge.index();
    frame(&mut forge, 2);
    forge.seal();
    frame(&mut forge, 2);
    (forge.finish(), committed)
});

/// A valid archive, edited, its checksums repaired but for those the script says.
pub fn repaired(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut bytes = BASE.clone();
    let script = |bytes: &mut Vec<u8>, u: &mut Unstructured<'_>| -> Result<()> {
        let left_out = if u.ratio(3, 4)? { 0 } else { u.arbitrary()? };
        edits::apply(bytes, 0, 8, u)?;
        repair(bytes, Repair::without(left_out));
        Ok(())
    };
    let _ = script(&mut bytes, &mut u);
    exercise(&bytes);
}

/// An interrupted backup's tail, damaged; the next backup must be right, whatever it adopts.
pub fn resume(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let (base, committed) = &*INTERRUPTED;
    let mut bytes = base.clone();
    let forged = u.ratio(1, 4).unwrap_or(false);
    let _ = edits::apply(&mut bytes, *committed, 6, &mut u);
    assert!(bytes[..*committed] == base[..*committed], "edits stay behind the commit");
    if forged {
        // Its checksums right, a tail may lie about what it holds: then only the old is safe.
        repair(&mut bytes, Repair::ALL);
        return exercise(&bytes);
    }
    let home = checks::home(&bytes);
    // A record of an unknown kind, well-formed, is not for us to write over.
    let Ok(archive) = checks::open(&home) else { return };
    assert_eq!(archive.end(), LogOffset(*committed as u64), "the last commit is the last commit");
    let source = checks::source();
    let request = checks::request(None, Compression::Zstd(1));
    let backup =
        || checks::back_up(&home, &[("disk", &source)], &request, &checks::context(20_000));
    backup().expect("a damaged tail is in nobody's way");
    let archive = checks::open(&home).expect("it was just written");
    for (back, expected) in [(0, &source), (1, &versions()[0])] {
        let snapshot = archive.select(&Selector::Latest(back)).expect("two snapshots");
        let volume = &snapshot.manifest.volumes[0];
        let target = checks::restore(&archive, &snapshot, volume, OnDamage::Fail, Delta::Off);
        assert!(target.expect("it restores").bytes() == *expected, "other bytes came back");
    }
    let report = checks::verify(&archive, false).expect("it verifies");
    assert!(report.ok && report.uncommitted_bytes == 0, "{:?}", report.damaged);
    let len = home.len().expect("memory");
    backup().expect("once more");
    assert!(home.len().expect("memory") - len < 32 * 4096, "what is stored is not stored again");
}

/// An archive forged by a script.
pub fn forged(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut scribe = Scribe::default();
    let _ = scribe.script(&mut u);
    scribe.flush(Level::Store);
    let mut bytes = scribe.finish();
    if u.ratio(1, 2).unwrap_or(false) && edits::apply(&mut bytes, 0, 4, &mut u).is_ok() {
        repair(&mut bytes, Repair::ALL);
    }
    exercise(&bytes);
}

/// Writes what a script says.
#[derive(Default)]
struct Scribe {
    forge: Forge,
    batch: Vec<Item>,
    batch_len: usize,
    chunks: Vec<Id>,
    nodes: Vec<Id>,
    volumes: Vec<Volume>,
    commits: i64,
}

impl Scribe {
    fn script(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..u.int_in_range(1..=24)? {
            if u.is_empty() {
                break;
            }
            match u.int_in_range(0..=11u8)? {
                0..=2 => self.chunk(u)?,
                3..=5 => self.map(u)?,
                6 | 7 => self.node(u)?,
                8 => {
                    let level = if u.arbitrary()? { Level::Store } else { Level::Zstd(1) };
                    self.flush(level);
                }
                9 => {
                    self.flush(Level::Store);
                    self.lie_about_places(u)?;
                    self.forge.index();
                }
                10 => {
                    self.flush(Level::Store);
                    self.forge.seal();
                }
                _ => self.commit(),
            }
        }
        Ok(())
    }

    fn push(&mut self, item: Item) {
        let full = self.batch_len + item.bytes.len() > FRAME_RAW_LEN_MAX as usize
            || self.batch.len() >= usize::from(FRAME_CHUNKS_MAX);
        if full {
            self.flush(Level::Store);
        }
        self.batch_len += item.bytes.len();
        self.batch.push(item);
    }

    fn flush(&mut self, level: Level) {
        self.batch_len = 0;
        let batch = std::mem::take(&mut self.batch);
        self.forge.frame(&batch, level);
    }

    fn commit(&mut self) {
        self.flush(Level::Store);
        self.commits += 1;
        self.forge.commit(&manifest(self.volumes.clone(), self.commits));
    }

    fn finish(mut self) -> Vec<u8> {
        self.commit();
        self.forge.finish()
    }

    fn chunk(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let len = *u.choose(&[4096, 4096, 4096, 8192, 1, 100, 65536])?;
        let mut item = Item::chunk(content(len, u.arbitrary()?), u.int_in_range(0..=9)?);
        self.spoil(&mut item, u)?;
        self.chunks.push(item.entry.id);
        self.push(item);
        Ok(())
    }

    /// Now and then, what the frame says of an item is not so.
    fn spoil(&mut self, item: &mut Item, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=31u8)? {
            1 => item.entry.id = Id(u.arbitrary()?),
            2 => item.entry.kind = u.int_in_range(1..=4)?,
            3 => item.entry.index = u.arbitrary()?,
            4 => item.entry.volume = u.arbitrary()?,
            5 if !self.chunks.is_empty() => item.entry.id = *u.choose(&self.chunks)?,
            _ => {}
        }
        Ok(())
    }

    fn entry(&self, u: &mut Unstructured<'_>) -> Result<Entry> {
        Ok(match u.int_in_range(0..=9u8)? {
            0..=3 if !self.chunks.is_empty() => Entry::Data(*u.choose(&self.chunks)?),
            4 | 5 if !self.nodes.is_empty() => Entry::Data(*u.choose(&self.nodes)?),
            6 if !self.chunks.is_empty() => Entry::Partial(*u.choose(&self.chunks)?),
            7 => Entry::Unreadable,
            8 => Entry::Data(Id([u.arbitrary()?; 32])),
            _ => Entry::Zero,
        })
    }

    /// A volume whose map is built as a writer builds it.
    fn map(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let chunk_len = *u.choose(&[4096, 4096, 4096, 8192, 65536, 1 << 20])?;
        let chunks = *u.choose(&[1, 2, 5, 255, 256, 257, 700, 65536, 65537, 1 << 24, 1 << 40])?;
        let less = *u.choose(&[0, 0, 1, 4000, 4095])?;
        let size = u64::from(chunk_len) * chunks - less;
        let Some(shape) = Shape::new(size, chunk_len) else { return Ok(()) };
        let mut builder = MapBuilder::new(shape);
        let mut nodes = Vec::new();
        for _ in 0..u.int_in_range(0..=12)? {
            let left = shape.chunk_count() - builder.position();
            if left == 0 {
                break;
            }
            let entry = self.entry(u)?;
            let count = *u.choose(&[1, 1, 2, 3, 200, 256, 1000])?;
            match entry.id() {
                None => builder.push_run(entry, count, &mut nodes),
                Some(_) => {
                    (0..count.min(left)).for_each(|_| builder.push(entry, &mut nodes));
                }
            }
        }
        let left = shape.chunk_count() - builder.position();
        builder.push_run(Entry::Zero, left, &mut nodes);
        let root = builder.finish(&mut nodes);
        for node in nodes {
            self.nodes.push(node.id);
            let mut item = Item::node(node.bytes, node.level, node.number);
            self.spoil(&mut item, u)?;
            self.push(item);
        }
        self.name(size, chunk_len, root, u)
    }

    /// A node of any kind, and a volume that would have it as its root.
    fn node(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let level = u.int_in_range(0..=6u8)?;
        let count = *u.choose(&[1, 2, 3, 255, 256])?;
        let mut pattern = Vec::new();
        for _ in 0..u.int_in_range(1..=3)? {
            let entry = self.entry(u)?;
            let partial = matches!(entry, Entry::Partial(_));
            pattern.push(if partial && level > 0 { Entry::Zero } else { entry });
        }
        let entries = pattern.into_iter().cycle().take(count).collect();
        let bytes = Node { level, entries }.encode();
        let id = if u.ratio(1, 16)? { chunk_id(&bytes) } else { node_id(&bytes) };
        let mut item = Item::node(bytes, level, 0);
        item.entry.id = id;
        self.spoil(&mut item, u)?;
        self.nodes.push(id);
        self.push(item);
        let chunks = (count as u64).saturating_mul(span_of_entry(level));
        let size = chunks.saturating_mul(4096).min(1 << 60);
        self.name(size, 4096, id, u)
    }

    fn name(
        &mut self,
        size: u64,
        chunk_len: u32,
        root: Id,
        u: &mut Unstructured<'_>,
    ) -> Result<()> {
        let name = *u.choose(&["disk", "disk", "other", "third"])?;
        let mut volume = forge::volume(name, size, chunk_len, root);
        match u.int_in_range(0..=15u8)? {
            1 => volume.size = u.arbitrary()?,
            2 => volume.chunk_size = u.arbitrary()?,
            3 => volume.unreadable.push((u.arbitrary()?, u.arbitrary()?)),
            4 => volume.name = u.arbitrary()?,
            _ => {}
        }
        self.volumes.retain(|other| other.name != volume.name);
        self.volumes.push(volume);
        Ok(())
    }

    /// Makes index entries point elsewhere, or forgets them.
    fn lie_about_places(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.forge.entries.is_empty() || u.ratio(1, 2)? {
            return Ok(());
        }
        let at = u.choose_index(self.forge.entries.len())?;
        let other = u.choose_index(self.forge.entries.len())?;
        let other = self.forge.entries[other].clone();
        let entry = &mut self.forge.entries[at];
        match u.int_in_range(0..=5u8)? {
            0 => entry.frame = other.frame,
            1 => entry.frame_len = *u.choose(&[113, 4096, 1 << 20, other.frame_len])?,
            2 => entry.slot = u.int_in_range(0..=255)?,
            3 => entry.kind = u.int_in_range(1..=4)?,
            4 => entry.frame = LogOffset(u64::MAX / 64 * 64 - *u.choose(&[64, 1 << 30])?),
            _ => {
                self.forge.entries.swap_remove(at);
            }
        }
        Ok(())
    }
}
