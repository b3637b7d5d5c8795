//! Exports as devices: what is read, written, zeroed and told of them.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use voltar_engine::cancel::Cancel;
use voltar_engine::device::{Device, ExtentKind, Extents, Op, OpKind, Queue, Zero, ZeroMethod};
use voltar_engine::io::{BufferPool, IoEngine};
use voltar_engine::nbd::{NbdDevice, Uri};

use super::server::{Local, have};

const LEN: u64 = 8 << 20;

/// The export `name` of a server whose socket is in `folder`.
fn connect(folder: &Path, contexts: &[&str], io: IoEngine) -> NbdDevice {
    let uri = format!("nbd+unix:///?socket={}", folder.join("nbd.sock").display());
    let contexts: Vec<String> = contexts.iter().map(|name| (*name).to_owned()).collect();
    NbdDevice::connect(&Uri::parse(&uri).unwrap(), &contexts, io, &Cancel::new()).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect()
}

fn qemu(program: &str, args: &[&str], folder: &Path) {
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn any_range_is_read_and_written_whatever_the_servers_blocks() {
    if !have("any_range_is_read_and_written_whatever_the_servers_blocks", &["nbdkit"]) {
        return;
    }
    for (blocks, io) in
        [("1", IoEngine::Auto), ("4096", IoEngine::Auto), ("4096", IoEngine::Blocking)]
    {
        let folder = tempfile::tempdir().unwrap();
        let block_min = format!("blocksize-minimum={blocks}");
        let policy =
            ["blocksize-maximum=64K", "blocksize-preferred=4K", "blocksize-error-policy=error"];
        let args =
            [&["--filter=blocksize-policy", "memory", "8M", &block_min], &policy[..]].concat();
        let mut server = Local::nbdkit(folder.path(), &args);
        drop(server.connect());
        let device = connect(folder.path(), &[], io);
        assert_eq!(device.len().unwrap(), LEN);
        let mut model = vec![0; LEN as usize];
        let ranges = [(0, 1), (4095, 2), (5000, 300_000), (LEN - 100_001, 100_001), (123, 4096)];
        for (number, (offset, len)) in ranges.into_iter().enumerate() {
            let bytes = pattern(len as usize, number as u8);
            device.write_at(&bytes, offset).unwrap();
            model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        for range in [6000..7000, 8192..65536, LEN - 5000..LEN - 1] {
            assert_eq!(device.zero(range.clone()).unwrap(), ZeroMethod::ZeroRange);
            model[range.start as usize..range.end as usize].fill(0);
        }
        device.sync().unwrap();
        let mut all = vec![0xee; LEN as usize + 10];
        assert_eq!(device.read_at(&mut all, 0).unwrap(), LEN as usize);
        assert!(all[..LEN as usize] == model, "blocks of {blocks}");
        let mut few = [0; 77];
        assert_eq!(device.read_at(&mut few, 4999).unwrap(), 77);
        assert_eq!(few, model[4999..5076]);
        assert_eq!(device.read_at(&mut few, LEN - 3).unwrap(), 3);
        assert_eq!(device.read_at(&mut few, LEN + 3).unwrap(), 0);
        assert!(device.write_at(&[1, 2], LEN - 1).is_err());
        through_a_queue(&device, &mut model);
    }
}

/// Many operations in flight, of which some go around the server's blocks and bounds.
fn through_a_queue(device: &NbdDevice, model: &mut [u8]) {
    let pool = BufferPool::new(16, 1 << 20).unwrap();
    let driver = device.driver(IoEngine::Auto, &pool, 16).unwrap();
    assert!(driver.describe().starts_with("nbd over "), "{}", driver.describe());
    let mut queue = Queue::new(driver, device.geometry(), 16);
    let mut done = Vec::new();
    for token in 0..12 {
        let (offset, len) = (token * 700_001 % (LEN - 600_000), 500_000 + token as usize * 512);
        let mut buffer = pool.take();
        buffer.fill_from(&pattern(len, token as u8));
        // Those that overlap must not be in flight together.
        if token > 0 {
            queue.wait(&mut done).unwrap();
        }
        model[offset as usize..][..len].copy_from_slice(&buffer);
        queue.submit(Op { token, kind: OpKind::Write { buffer, from: 0, len }, offset }).unwrap();
    }
    while queue.in_flight() > 0 {
        queue.wait(&mut done).unwrap();
    }
    assert_eq!(done.len(), 12);
    assert!(done.drain(..).all(|written| written.result.is_ok()));
    for token in 1..16 {
        let buffer = pool.take();
        let offset = token * 524_288;
        queue.submit(Op { token, kind: OpKind::Read { buffer, len: 524_289 }, offset }).unwrap();
    }
    while queue.in_flight() > 0 {
        queue.wait(&mut done).unwrap();
    }
    for read in done {
        let count = read.result.unwrap();
        assert_eq!(count as u64, 524_289.min(LEN - read.offset));
        assert!(*read.buffer == model[read.offset as usize..][..count]);
    }
}

#[test]
fn a_server_is_not_asked_for_more_at_once_than_it_can_work_on() {
    const NAME: &str = "a_server_is_not_asked_for_more_at_once_than_it_can_work_on";
    const READ_LEN: usize = 1 << 20;
    if !have(NAME, &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Local::nbdkit(folder.path(), &["memory", "32M"]);
    drop(server.connect());
    let device = connect(folder.path(), &[], IoEngine::Auto);
    let disk = pattern(32 << 20, 3);
    device.write_at(&disk, 0).unwrap();
    let pool = BufferPool::new(32, READ_LEN).unwrap();
    let driver = device.driver(IoEngine::Auto, &pool, 32).unwrap();
    let mut queue = Queue::new(driver, device.geometry(), 32);
    let mut done = Vec::new();
    let read = |token: u64| {
        let kind = OpKind::Read { buffer: pool.take(), len: READ_LEN };
        Op { token, kind, offset: token * READ_LEN as u64 }
    };
    // Nothing is taken as answered before the queue is asked for it.
    let mut asked = 0;
    let mut given_back = loop {
        match queue.submit(read(asked)) {
            Ok(()) => asked += 1,
            Err(op) => break Some(op),
        }
    };
    assert_eq!((asked, queue.in_flight()), (8, 8));
    while done.len() < 32 {
        queue.wait(&mut done).unwrap();
        while let Some(op) = given_back.take() {
            match queue.submit(op) {
                Ok(()) => {
                    asked += 1;
                    given_back = (asked < 32).then(|| read(asked));
                }
                Err(op) => {
                    given_back = Some(op);
                    break;
                }
            }
        }
    }
    for completion in done {
        assert!(completion.result.is_ok());
        let range = completion.offset as usize..completion.offset as usize + READ_LEN;
        assert!(completion.buffer[..] == disk[range], "other bytes at {:#x}", completion.offset);
    }
}

#[test]
fn what_changed_and_what_is_there_is_told_by_qemu() {
    if !have("what_changed_and_what_is_there_is_told_by_qemu", &["qemu-nbd", "qemu-img", "qemu-io"])
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |program, args: &[&str]| qemu(program, args, folder.path());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "8M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write 1M 1M", "base.qcow2"]);
    let over = ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"];
    run("qemu-img", &over);
    run("qemu-img", &["bitmap", "--add", "-g", "64K", "top.qcow2", "since"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write 3M 128K", "-c", "write -z 5M 64K", "top.qcow2"]);
    let image = folder.path().join("top.qcow2");
    let args = ["-r", "-f", "qcow2", "-B", "since", "-A", image.to_str().unwrap()];
    let mut server = Local::qemu_nbd(folder.path(), &args);
    drop(server.connect());
    let (dirty, depth) = ("qemu:dirty-bitmap:since", "qemu:allocation-depth");
    let device = connect(folder.path(), &[dirty, depth, "qemu:dirty-bitmap:other"], IoEngine::Auto);
    let told = |context, range| device.status(context, range).unwrap();
    let mib = |range: Range<u64>| range.start << 20..range.end << 20;
    let k64 = 64 << 10;
    let (three, five) = (3 << 20, 5 << 20);
    let expected = [
        (0..three, 0),
        (three..three + 2 * k64, 1),
        (three + 2 * k64..five, 0),
        (five..five + k64, 1),
        (five + k64..LEN, 0),
    ];
    assert_eq!(told(dirty, 0..LEN), expected);
    // From and to anywhere.
    let part = told(dirty, three + 1000..three + 2 * k64 + 7);
    assert_eq!(
        part,
        [(three + 1000..three + 2 * k64, 1), (three + 2 * k64..three + 2 * k64 + 7, 0)]
    );
    let depths = told(depth, 0..LEN);
    assert_eq!(depths[..3], [(mib(0..1), 0), (mib(1..2), 2), (mib(2..3), 0)]);
    assert_eq!(depths[3], (three..three + 2 * k64, 1));
    let unknown = device.status("qemu:dirty-bitmap:other", 0..LEN).unwrap_err();
    assert_eq!(unknown.kind(), io::ErrorKind::Unsupported);
    let kinds: Vec<_> = [0, 1 << 20, 2 << 20, three, five]
        .map(|at| device.extent_at(at).unwrap())
        .map(|extent| (extent.range.end, extent.kind == ExtentKind::Hole))
        .to_vec();
    let ends = [1 << 20, 2 << 20, three, three + 2 * k64, LEN];
    let holes = [true, false, true, false, true];
    assert_eq!(kinds, ends.into_iter().zip(holes).collect::<Vec<_>>());
}
