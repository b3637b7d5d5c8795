//! Headers of all kinds of qcow2 images, and magic numbers of the other formats.

use std::fs::File;
use std::io::Read;

use voltar_engine::image::format::{Format, MAGIC_LEN};
use voltar_engine::image::qcow2::error::ImageError;
use voltar_engine::image::qcow2::header::{Compression, Header};
use voltar_tests::Scratch;

use crate::qemu::{folder, run, write};

const SIZE: u64 = 5 << 20;

fn header(folder: &Scratch, name: &str) -> Result<Header, ImageError> {
    Header::read(&File::open(folder.path(name)).unwrap())
}

#[test]
fn headers_of_all_kinds() {
    let Some(folder) = folder("headers_of_all_kinds") else { return };
    let made = |options: &str| {
        run(&folder, &format!("qemu-img create -q -f qcow2 -o {options} disk.qcow2 {SIZE}"));
        write(&folder, "disk.qcow2", 7, 65536, 65536);
        let header = header(&folder, "disk.qcow2").unwrap();
        assert_eq!(header.size, SIZE, "{options}");
        header
    };
    assert_eq!(made("compat=0.10").version, 2);
    for cluster_bits in 9..=21 {
        let header = made(&format!("compat=1.1,cluster_size={}", 1 << cluster_bits));
        assert_eq!((header.version, header.cluster_bits), (3, cluster_bits));
        assert_eq!((header.incompatible, header.backing), (0, None));
    }
    for refcount_bits in [1, 8, 64] {
        made(&format!("refcount_bits={refcount_bits}"));
    }
    for preallocation in ["metadata", "falloc", "full"] {
        made(&format!("preallocation={preallocation}"));
    }
    assert!(made("extended_l2=on,cluster_size=128k").has_extended_l2());
    assert_eq!(made("compression_type=zstd").compression, Compression::Zstd);
    assert_eq!(made("compression_type=zlib").compression, Compression::Deflate);
    assert_eq!(made("lazy_refcounts=on").compatible, 1);
    let external = made("data_file=data.raw,data_file_raw=on");
    assert!(external.has_raw_data_file());
    assert_eq!(external.data_file.as_deref(), Some("data.raw"));
    std::fs::remove_file(folder.path("data.raw")).unwrap();
    assert!(!made("data_file=data.raw").has_raw_data_file());
}

#[test]
fn large_small_and_snapshotted_disks() {
    let Some(folder) = folder("large_small_and_snapshotted_disks") else { return };
    for size in ["0", "512", "64T"] {
        run(&folder, &format!("qemu-img create -q -f qcow2 disk.qcow2 {size}"));
        header(&folder, "disk.qcow2").unwrap();
    }
    run(&folder, "qemu-img create -q -f qcow2 disk.qcow2 4M");
    for name in ["one", "two"] {
        run(&folder, &format!("qemu-img snapshot -c {name} disk.qcow2"));
    }
    assert_eq!(header(&folder, "disk.qcow2").unwrap().snapshot_count, 2);
    run(&folder, "qemu-img resize -q disk.qcow2 8M");
    assert_eq!(header(&folder, "disk.qcow2").unwrap().size, 8 << 20);
}

#[test]
fn encrypted_images_are_refused() {
    let Some(folder) = folder("encrypted_images_are_refused") else { return };
    let secret = "--object secret,id=key,data=secret";
    for (format, method) in [("luks", "LUKS"), ("aes", "AES")] {
        let iterations = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        let options = format!("encrypt.format={format},encrypt.key-secret=key{iterations}");
        run(&folder, &format!("qemu-img create -q -f qcow2 {secret} -o {options} disk.qcow2 4M"));
        let error = header(&folder, "disk.qcow2").unwrap_err();
        assert!(matches!(error, ImageError::Encrypted { method: m } if m == method), "{error}");
    }
}

#[test]
fn formats_are_told_by_their_magic_numbers() {
    let Some(folder) = folder("formats_are_told_by_their_magic_numbers") else { return };
    let of = |options: &str| {
        run(&folder, &format!("qemu-img create -q -f {options} disk 4M"));
        let mut first = Vec::new();
        let file = File::open(folder.path("disk")).unwrap();
        file.take(MAGIC_LEN as u64).read_to_end(&mut first).unwrap();
        Format::of_header(&first)
    };
    assert_eq!(of("raw"), None);
    assert_eq!(of("qcow2"), Some(Format::Qcow2));
    assert_eq!(of("vmdk"), Some(Format::Vmdk));
    assert_eq!(of("vmdk -o subformat=streamOptimized"), Some(Format::Vmdk));
    assert_eq!(of("vmdk -o subformat=twoGbMaxExtentFlat"), Some(Format::Vmdk));
    assert_eq!(of("vhdx"), Some(Format::Vhdx));
    assert_eq!(of("vdi"), Some(Format::Vdi));
    assert_eq!(of("vpc"), None);
}
