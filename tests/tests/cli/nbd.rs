//! Exports of NBD servers as sources and as targets, with nbdkit, `qemu-nbd` and `nbdcopy` as peers.

use std::ops::Range;

use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::device::system;
use voltar_tests::nbd::{self, Request, Server};
use voltar_tests::{Rng, Scratch, Voltar};

const MIB: usize = 1 << 20;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// Backs up `source` as `disk` into a new archive; what it reported.
#[track_caller]
fn back_up(scratch: &Scratch, source: &str, archive: &str) -> Value {
    voltar(scratch, &format!("backup disk={source} {archive}")).json()["volumes"][0].clone()
}

#[track_caller]
fn assert_restores(scratch: &Scratch, archive: &str, bytes: &[u8]) {
    voltar(scratch, &format!("restore {archive} out")).ok();
    assert_same(&scratch.read("out"), bytes, archive);
    std::fs::remove_file(scratch.path("out")).unwrap();
}

/// An archive of one volume `disk` that holds `bytes`.
fn archive_of(scratch: &Scratch, bytes: &[u8]) -> &'static str {
    scratch.write("disk", bytes);
    voltar(scratch, "backup disk a.voltar").ok();
    "a.voltar"
}

/// The first `bytes` of an export are these.
#[track_caller]
fn assert_holds(server: &Server, bytes: &[u8], what: &str) {
    assert_same(&server.contents()[..bytes.len()], bytes, what);
}

fn number(object: &Value, name: &str) -> usize {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}")) as usize
}

fn range(request: &Request) -> Range<usize> {
    request.offset as usize..(request.offset + request.count) as usize
}

/// An image of QEMU's that holds `bytes`.
fn qcow2(scratch: &Scratch, name: &str, bytes: &[u8]) {
    let raw = scratch.write(&format!("{name}.raw"), bytes);
    let image = scratch.path(name);
    let args = ["convert", "-f", "raw", "-O", "qcow2"];
    system("qemu-img", &[&args[..], &[raw.to_str().unwrap(), image.to_str().unwrap()]].concat())
        .unwrap();
}

#[test]
fn an_export_is_backed_up_without_its_holes() {
    let test = "an_export_is_backed_up_without_its_holes";
    let Some(scratch) = nbd::scratch(test) else { return };
    let args = ["sparse-random", "64M", "seed=7", "percent=20", "runlength=262144"];
    let on_unix = Server::nbdkit(&scratch, "unix", &args);
    let on_tcp = Server::nbdkit_on_tcp(&scratch, "tcp", &args);
    for (server, archive) in [(on_unix, "unix.voltar"), (on_tcp, "tcp.voltar")] {
        let bytes = server.contents();
        let data = bytes.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
        assert!((4 * MIB..40 * MIB).contains(&(data * 4096)), "not sparse, or nothing but holes");
        server.forget_requests();
        let made = back_up(&scratch, &server.uri(), archive);
        let read: usize = server.requests_for("Read").iter().map(|it| range(it).len()).sum();
        assert!(number(&made, "read_bytes") >= data * 4096, "{made}");
        assert!(read <= data * 4096 + 8 * MIB, "{read} bytes were read, there are {}", data * 4096);
        for request in server.requests_for("Read") {
            let asked = &bytes[range(&request)];
            assert!(asked.iter().any(|byte| *byte != 0), "a read of a hole: {request:?}");
        }
        assert!(number(&made, "read_bytes") <= read, "{made}");
        assert_restores(&scratch, archive, &bytes);
    }
}

#[test]
fn a_qcow2_image_is_backed_up_through_qemu_nbd() {
    let test = "a_qcow2_image_is_backed_up_through_qemu_nbd";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(11, 20 * MIB + 512);
    qcow2(&scratch, "image", &bytes);
    let name = "my disk/50% \u{fc}";
    let line = ["--read-only", "--format=qcow2", "--export-name", name, "image"];
    for (several, archive) in [(&[][..], "one.voltar"), (&["--shared=4"][..], "four.voltar")] {
        let server = Server::qemu_nbd(&scratch, "qemu", &[several, &line[..]].concat());
        let uri = server.uri_of("my%20disk/50%25%20%C3%BC");
        let first = back_up(&scratch, &uri, archive);
        assert!(number(&first, "new_bytes") > MIB, "{first}");
        assert!(number(&first, "read_bytes") < bytes.len(), "its zeroes were read: {first}");
        assert_restores(&scratch, archive, &bytes);
        let second = back_up(&scratch, &uri, archive);
        assert_eq!(number(&second, "new_bytes"), 0, "{second}");
        let unknown = voltar(&scratch, &format!("backup disk={} {archive}", server.uri_of("none")));
        let refused = unknown.run().expect(1);
        assert!(refused.stderr.contains("has no export \"none\""), "{}", refused.stderr);
        assert!(refused.stderr.contains(name), "which there are: {}", refused.stderr);
    }
}

#[test]
fn an_export_in_memory_is_restored_to_and_proven() {
    let test = "an_export_in_memory_is_restored_to_and_proven";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(12, 24 * MIB);
    let archive = archive_of(&scratch, &bytes);
    for io in ["uring", "blocking"] {
        let server = Server::nbdkit(&scratch, io, &["memory", "24M"]);
        let line = format!("restore {archive} {} --read-back --io {io}", server.uri());
        let made = voltar(&scratch, &line).json();
        assert_eq!(made["read_back"], true, "{made}");
        let zeroed = number(&made["volumes"][0], "zeroed_bytes");
        assert!(zeroed > MIB, "{made}");
        let zeroes = server.requests_for("Zero");
        let zeroed_there: usize = zeroes.iter().map(|it| range(it).len()).sum();
        assert_eq!(zeroed_there, zeroed, "zeroes were not sent as bytes");
        assert!(!server.requests_for("Flush").is_empty(), "nothing was made durable");
        assert_holds(&server, &bytes, io);
        let back = format!("{io}.voltar");
        let line = format!("backup disk={} {back} --io {io}", server.uri());
        voltar(&scratch, &line).ok();
        assert_restores(&scratch, &back, &bytes);
    }
}

#[test]
fn a_new_qcow2_image_is_restored_to_and_stays_sparse() {
    let test = "a_new_qcow2_image_is_restored_to_and_stays_sparse";
    let Some(scratch) = nbd::scratch(test) else { return };
    // 3 MiB of data somewhere in 256 MiB.
    let mut bytes = vec![0; 256 * MIB];
    Rng::new(13).fill(&mut bytes[64 * MIB..66 * MIB]);
    Rng::new(14).fill(&mut bytes[200 * MIB + 4096..201 * MIB]);
    let archive = archive_of(&scratch, &bytes);
    let image = scratch.path("image");
    let image = image.to_str().unwrap();
    system("qemu-img", &["create", "-f", "qcow2", image, "256M"]).unwrap();
    let server = Server::qemu_nbd(&scratch, "qemu", &["--format=qcow2", "image"]);
    voltar(&scratch, &format!("restore {archive} {} --read-back", server.uri())).ok();
    drop(server);
    system("qemu-img", &["check", image]).unwrap();
    let raw = scratch.path("raw");
    system("qemu-img", &["convert", "-O", "raw", image, raw.to_str().unwrap()]).unwrap();
    assert_same(&scratch.read("raw"), &bytes, "the image");
    let map = system("qemu-img", &["map", "--output=json", image]).unwrap();
    let map: Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap().iter();
    let data: usize =
        extents.filter(|extent| extent["data"] == true).map(|it| number(it, "length")).sum();
    assert!((3 * MIB - 4096..=3 * MIB).contains(&data), "{data} bytes of data: {map}");
    assert!(scratch.allocated("image") < 5 << 20, "{}", scratch.allocated("image"));
}

#[test]
fn a_target_that_does_not_do_is_refused_unchanged() {
    let test = "a_target_that_does_not_do_is_refused_unchanged";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(15, 4 * MIB);
    let archive = archive_of(&scratch, &bytes);
    let other = disk(16, 4 * MIB);
    scratch.write("other", &other);
    let table: [(&str, &[&str], &str); 3] = [
        ("small", &["memory", "4194303"], "4194303 bytes and 4194304 are needed"),
        ("read-only", &["--readonly", "memory", "4M"], "exported read-only"),
        ("full", &["file", "other"], "it holds data"),
    ];
    for (name, args, words) in table {
        let server = Server::nbdkit(&scratch, name, args);
        let ran = voltar(&scratch, &format!("restore {archive} {}", server.uri())).run().expect(5);
        assert!(ran.stderr.contains(words), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("not a byte of the target was written"), "{}", ran.stderr);
        for kind in ["Write", "Zero", "Trim"] {
            assert_eq!(server.requests_for(kind), [], "{name}");
        }
    }
    assert_same(&scratch.read("other"), &other, "the refused target");
}

#[test]
fn the_end_of_a_larger_target_is_left_as_it_was() {
    let test = "the_end_of_a_larger_target_is_left_as_it_was";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(17, 4 * MIB);
    let archive = archive_of(&scratch, &bytes);
    let other = disk(18, 5 * MIB);
    scratch.write("other", &other);
    let server = Server::nbdkit(&scratch, "larger", &["file", "other"]);
    let line = format!("restore {archive} {} --overwrite", server.uri());
    let ran = voltar(&scratch, &line).ok();
    assert!(ran.stderr.contains("its last 1048576 bytes were left as they were"), "{}", ran.stderr);
    drop(server);
    assert_same(&scratch.read("other")[..4 * MIB], &bytes, "the volume");
    assert_same(&scratch.read("other")[4 * MIB..], &other[4 * MIB..], "behind the volume");
}

#[test]
fn only_what_differs_is_written_over_data() {
    let test = "only_what_differs_is_written_over_data";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(19, 16 * MIB);
    let archive = archive_of(&scratch, &bytes);
    let mut other = bytes.clone();
    other[5 * MIB + 4096..5 * MIB + 8192].iter_mut().for_each(|byte| *byte ^= 0xff);
    scratch.write("other", &other);
    let server = Server::nbdkit(&scratch, "other", &["file", "other"]);
    let line = format!("restore {archive} {} --overwrite --read-back", server.uri());
    let made = voltar(&scratch, &line).json();
    let chunk = 5 * MIB..5 * MIB + (64 << 10);
    let written: Vec<_> = server.requests_for("Write").iter().map(range).collect();
    assert!(!written.is_empty(), "{made}");
    for range in &written {
        assert!(chunk.start <= range.start && range.end <= chunk.end, "{range:?} was written");
    }
    assert_eq!(server.requests_for("Trim"), []);
    assert!(number(&made["volumes"][0], "kept_bytes") >= bytes.len() - chunk.len(), "{made}");
    drop(server);
    assert_same(&scratch.read("other"), &bytes, "after the restore");
}

#[test]
fn servers_without_abilities_are_restored_to_all_the_same() {
    let test = "servers_without_abilities_are_restored_to_all_the_same";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(20, 3 * MIB + 512);
    let archive = archive_of(&scratch, &bytes);
    // Every byte that lies there must become another.
    let dirty = |name: &str| scratch.write(name, &vec![0xee; bytes.len()]);
    let path = dirty("plain");
    let shell = [
        format!("get_size=echo {}", bytes.len()),
        format!("pread=dd if={} iflag=skip_bytes,count_bytes skip=$4 count=$3", path.display()),
        format!("pwrite=dd of={} oflag=seek_bytes seek=$4 conv=notrunc", path.display()),
        "can_write=exit 0".to_owned(),
    ];
    let mut plain = vec!["eval"];
    plain.extend(shell.iter().map(String::as_str));
    let table: [(&str, &[&str], &[&str]); 3] = [
        ("plain", &plain, &["Zero", "Trim", "Flush", "Extents"]),
        ("no-zero", &["--filter=nozero", "file", "no-zero"], &["Zero"]),
        ("no-structure", &["--no-sr", "file", "no-structure"], &["Extents"]),
    ];
    for (name, args, never) in table {
        dirty(name);
        let server = Server::nbdkit(&scratch, name, args);
        let line =
            format!("restore {archive} {} --overwrite --delta off --read-back", server.uri());
        voltar(&scratch, &line).ok();
        assert!(!server.requests_for("Write").is_empty(), "{name}: {}", server.complaints());
        for kind in never {
            assert_eq!(server.requests_for(kind), [], "{name}");
        }
        drop(server);
        assert_same(&scratch.read(name), &bytes, name);
    }
}

#[test]
fn block_lengths_of_a_server_are_kept_to() {
    let test = "block_lengths_of_a_server_are_kept_to";
    let Some(scratch) = nbd::scratch(test) else { return };
    // Ends in the middle of a block, which holds something else behind it.
    let bytes = disk(21, 3 * MIB + 512);
    let archive = archive_of(&scratch, &bytes);
    let before = vec![0xee; 4 * MIB];
    scratch.write("target", &before);
    let policy = [
        "--filter=blocksize-policy",
        "file",
        "target",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64K",
        "blocksize-error-policy=error",
    ];
    let server = Server::nbdkit(&scratch, "target", &policy);
    let line = format!("restore {archive} {} --overwrite --read-back", server.uri());
    voltar(&scratch, &line).ok();
    let requests = server.requests();
    let data = requests.iter().filter(|it| ["Read", "Write"].contains(&&*it.kind));
    assert!(data.clone().count() > bytes.len() / (64 << 10), "{requests:?}");
    for request in data {
        let is_aligned = request.offset % 4096 == 0 && request.count % 4096 == 0;
        assert!(is_aligned && request.count <= 64 << 10, "{request:?}");
    }
    assert_eq!(server.complaints(), "");
    let back = back_up(&scratch, &server.uri(), "back.voltar");
    assert_eq!(number(&back, "size"), 4 * MIB);
    drop(server);
    let after = scratch.read("target");
    assert_same(&after[..bytes.len()], &bytes, "the volume");
    assert_same(&after[bytes.len()..], &before[bytes.len()..], "behind the volume");
    assert_restores(&scratch, "back.voltar", &after);
}

#[test]
fn odd_servers_are_backed_up_whole() {
    let test = "odd_servers_are_backed_up_whole";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(22, 8 * MIB + 512);
    scratch.write("source", &bytes);
    let table: [(&str, &[&str]); 6] = [
        ("no-structure", &["--no-sr", "file", "source"]),
        ("no-extents", &["--filter=noextents", "file", "source"]),
        ("one-connection", &["--filter=multi-conn", "file", "source", "multi-conn-mode=disable"]),
        ("one-at-a-time", &["--filter=noparallel", "file", "source"]),
        ("late", &["--filter=delay", "file", "source", "rdelay=50ms"]),
        ("read-only", &["--readonly", "file", "source"]),
    ];
    for (name, args) in table {
        for io in ["uring", "blocking"] {
            let server = Server::nbdkit(&scratch, &format!("{name}-{io}"), args);
            let archive = format!("{name}-{io}.voltar");
            voltar(&scratch, &format!("backup disk={} {archive} --io {io}", server.uri())).ok();
            assert!(!server.requests_for("Read").is_empty(), "{name}");
            assert_restores(&scratch, &archive, &bytes);
        }
    }
}
