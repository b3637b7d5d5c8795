//! The parts of the data path, each alone: zero test, hash, checksum, codec, index look-up, map
//! walk. `cargo bench -p voltar-benches`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use voltar_engine::archive::Home;
use voltar_engine::archive::index::Index;
use voltar_engine::codec::{Encoder, Level};
use voltar_engine::device::Device;
use voltar_engine::device::memory::MemoryDevice;
use voltar_format::checksum::{chunk_id, crc32c};
use voltar_format::commit::RunEntry;
use voltar_format::index::{IndexEntry, build_run};
use voltar_format::map::{Entry, MapBuilder, Node, Shape};
use voltar_format::walk::{Cursor, NodeSource};
use voltar_format::wire::{Reserved, is_zero};
use voltar_format::{FormatError, Id, LogOffset};

const MIB: usize = 1 << 20;

/// Bytes like those of programs: skewed, with repeats at many distances.
fn program_like(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = (state >> 33) as usize;
        if pick.is_multiple_of(3) && bytes.len() > 512 {
            let from = bytes.len() - 1 - pick % 500;
            let count = 4 + pick % 24;
            for at in from..from + count {
                bytes.push(bytes[at.min(bytes.len() - 1)]);
            }
        } else {
            bytes.push((pick % 97) as u8);
        }
    }
    bytes.truncate(len);
    bytes
}

fn bytes_parts(c: &mut Criterion) {
    let zeroes = vec![0u8; MIB];
    let data = program_like(MIB);
    let mut group = c.benchmark_group("1 MiB");
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("zero test, zero", |b| b.iter(|| is_zero(black_box(&zeroes))));
    group.bench_function("zero test, data", |b| b.iter(|| is_zero(black_box(&data))));
    group.bench_function("chunk id, 64 KiB chunks", |b| {
        b.iter(|| data.chunks(64 << 10).map(|chunk| chunk_id(chunk).0[0]).fold(0, |a, b| a ^ b));
    });
    group.bench_function("crc-32c", |b| b.iter(|| crc32c(black_box(&data))));
    group.bench_function("crc-32c, crate crc32c", |b| b.iter(|| crc32c::crc32c(black_box(&data))));
    for level in [-50, -9, -4, 1, 3] {
        let (mut encoder, mut out) = (Encoder::new().expect("memory"), vec![0; MIB]);
        group.bench_function(format!("zstd {level}"), |b| {
            b.iter(|| {
                encoder.encode(black_box(&data), Level::Zstd(level), &mut out).expect("zstd")
            });
        });
    }
    group.finish();
}

fn index(entries: u64) -> (Index, Vec<Id>) {
    let mut all: Vec<IndexEntry> = (0..entries)
        .map(|n| IndexEntry {
            id: chunk_id(&n.to_le_bytes()),
            frame: LogOffset(8192 + n * 64),
            frame_len: 200,
            slot: 0,
            kind: 1,
            reserved: Reserved,
        })
        .collect();
    all.sort_by_key(|entry| entry.id);
    let (pages, built) = build_run(&all);
    let home = MemoryDevice::new(0).growing();
    home.write_at(&pages, 8192).expect("memory");
    let run = RunEntry::new(LogOffset(4096), &built);
    let home: Arc<dyn Home> = Arc::new(home);
    (Index::new(home, vec![run]), all.iter().map(|entry| entry.id).collect())
}

fn index_parts(c: &mut Criterion) {
    let (index, ids) = index(200_000);
    let mut group = c.benchmark_group("index of 200 000 items");
    group.throughput(Throughput::Elements(1));
    let mut next = 0;
    group.bench_function("found", |b| {
        b.iter(|| {
            next = (next + 7919) % ids.len();
            index.find(&ids[next]).expect("whole").is_some()
        });
    });
    let mut stranger = 0u64;
    group.bench_function("not found", |b| {
        b.iter(|| {
            stranger += 1;
            index.find(&chunk_id(&(stranger | 1 << 40).to_le_bytes())).expect("whole").is_some()
        });
    });
    group.finish();
}

struct Nodes(std::collections::HashMap<Id, Vec<u8>>);

impl NodeSource for Nodes {
    type Error = FormatError;
    fn node(&mut self, id: &Id, shape: &Shape, level: u8, n: u64) -> Result<Node, FormatError> {
        Node::decode(&self.0[id], shape, level, n)
    }
}

fn map_parts(c: &mut Criterion) {
    let chunks = 100_000u64;
    let shape = Shape::new(chunks * 4096, 4096).expect("a shape");
    let build = || {
        let mut builder = MapBuilder::new(shape);
        let mut out = Vec::new();
        for n in 0..chunks {
            builder.push(Entry::Data(chunk_id(&n.to_le_bytes())), &mut out);
        }
        (builder.finish(&mut out), out)
    };
    let (root, nodes) = build();
    let mut nodes = Nodes(nodes.into_iter().map(|node| (node.id, node.bytes)).collect());
    let mut group = c.benchmark_group("map of 100 000 chunks");
    group.throughput(Throughput::Elements(chunks));
    group.bench_function("build", |b| b.iter(|| build().0));
    group.bench_function("walk", |b| {
        b.iter(|| {
            let mut cursor = Cursor::new(shape, root);
            let mut count = 0;
            while cursor.next_run(&mut nodes).expect("whole").is_some() {
                count += 1;
            }
            count
        });
    });
    group.finish();
}

criterion_group!(parts, bytes_parts, index_parts, map_parts);
criterion_main!(parts);
