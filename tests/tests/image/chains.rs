//! Chains of images: what is opened, what is refused, and that qemu-nbd serves the disk from the
//! nodes and from nothing else.

use std::fs;
use std::os::unix::fs::symlink;

use voltar_engine::error::{Error, ErrorKind};
use voltar_engine::image::chain::Chain;
use voltar_engine::image::files::Allowed;
use voltar_engine::image::format::Format;
use voltar_tests::{Loop, Scratch, is_root, skip};

use crate::qemu::{folder, run, served, write};

const SIZE: usize = 4 << 20;

fn open(folder: &Scratch, name: &str, format: Format) -> Result<Chain, Error> {
    Chain::open(&folder.path(name), format, &Allowed::ImageFolder)
}

fn qcow2(folder: &Scratch, name: &str) -> Result<Chain, Error> {
    open(folder, name, Format::Qcow2)
}

/// Words of an error, of its cause, and of what to do.
fn said(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let meaning = error.data_meaning().unwrap_or_default();
    let hint = error.remedy().unwrap_or_default();
    assert!(!hint.is_empty() && !meaning.is_empty(), "{error:?} says what to do");
    format!("{error} | {cause} | {hint}")
}

/// A disk with these stretches, zero elsewhere.
fn disk(stretches: &[(u8, std::ops::Range<usize>)]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (byte, range) in stretches {
        bytes[range.clone()].fill(*byte);
    }
    bytes
}

/// `base.raw` below `mid.qcow2` below `top.qcow2`, and their disk.
fn three(folder: &Scratch) -> Vec<u8> {
    folder.write("base.raw", &disk(&[(1, 0..300_000)]));
    run(folder, "qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    write(folder, "mid.qcow2", 2, 65536, 131_072);
    run(folder, "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    write(folder, "top.qcow2", 3, 131_072, 65536);
    disk(&[(1, 0..300_000), (2, 65536..196_608), (3, 131_072..196_608)])
}

#[test]
fn a_chain_is_served_as_the_disk_it_is() {
    let Some(folder) = folder("a_chain_is_served_as_the_disk_it_is") else { return };
    let disk = three(&folder);
    let chain = qcow2(&folder, "top.qcow2").unwrap();
    let formats: Vec<Format> = chain.layers().iter().map(|layer| layer.format()).collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Raw]);
    assert_eq!(chain.top().qcow2().unwrap().size, SIZE as u64);
    assert!(served(&folder, &chain.blockdev_json()) == disk);
    // What is put in the place of a file that was checked is not what is served.
    fs::rename(folder.path("base.raw"), folder.path("old.raw")).unwrap();
    folder.write("base.raw", &[9; SIZE]);
    assert!(served(&folder, &chain.blockdev_json()) == disk);
}

#[test]
fn a_raw_base_stays_raw_whatever_its_guest_wrote() {
    let Some(folder) = folder("a_raw_base_stays_raw_whatever_its_guest_wrote") else { return };
    run(&folder, "qemu-img create -q -f qcow2 evil.qcow2 4M");
    let mut bytes = fs::read(folder.path("evil.qcow2")).unwrap();
    bytes.resize(SIZE, 0);
    folder.write("base.raw", &bytes);
    run(&folder, "qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2");
    let chain = qcow2(&folder, "top.qcow2").unwrap();
    assert!(served(&folder, &chain.blockdev_json()) == bytes);
    let raw = open(&folder, "base.raw", Format::Raw).unwrap();
    assert!(served(&folder, &raw.blockdev_json()) == bytes);
}

#[test]
fn a_data_file_is_served() {
    let Some(folder) = folder("a_data_file_is_served") else { return };
    for raw in ["on", "off"] {
        let options = format!("data_file=data.raw,data_file_raw={raw}");
        run(&folder, &format!("qemu-img create -q -f qcow2 -o {options} top.qcow2 {SIZE}"));
        write(&folder, "top.qcow2", 5, 65536, 65536);
        let chain = qcow2(&folder, "top.qcow2").unwrap();
        let nodes = chain.blockdev_json();
        assert!(served(&folder, &nodes) == disk(&[(5, 65536..131_072)]), "{raw}");
        drop(chain);
        fs::remove_file(folder.path("data.raw")).unwrap();
        let error = qcow2(&folder, "top.qcow2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", said(&error));
        assert!(said(&error).contains("data file \"data.raw\""), "{}", said(&error));
    }
}

#[test]
fn images_of_other_programs_are_served() {
    let Some(folder) = folder("images_of_other_programs_are_served") else { return };
    let disk = disk(&[(7, 100_000..3_000_000)]);
    folder.write("disk.raw", &disk);
    for (format, options) in [
        (Format::Vmdk, "subformat=monolithicSparse"),
        (Format::Vmdk, "subformat=monolithicFlat"),
        (Format::Vmdk, "subformat=twoGbMaxExtentSparse"),
        (Format::Vmdk, "subformat=twoGbMaxExtentFlat"),
        (Format::Vmdk, "subformat=streamOptimized"),
        (Format::Vhdx, "subformat=dynamic"),
        (Format::Vdi, "static=off"),
    ] {
        let name = format!("disk.{format}");
        let _ = fs::remove_file(folder.path(&name));
        run(&folder, &format!("qemu-img convert -f raw -O {format} -o {options} disk.raw {name}"));
        let chain = open(&folder, &name, format).unwrap();
        let served = served(&folder, &chain.blockdev_json());
        assert!(served == disk, "{format} {options}: {} bytes", served.len());
    }
    run(&folder, "qemu-img create -q -f vmdk -b disk.vmdk -F vmdk child.vmdk");
    let error = open(&folder, "child.vmdk", Format::Vmdk).unwrap_err();
    assert!(said(&error).contains("made upon another image"), "{}", said(&error));
    for format in [Format::Qcow2, Format::Vmdk, Format::Vhdx, Format::Vdi] {
        let error = open(&folder, "disk.raw", format).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnusable);
        assert!(said(&error).contains(&format!("not of the format {format}")), "{}", said(&error));
    }
}

/// Makes `top.qcow2`, which says that it is made upon `name`.
fn upon(folder: &Scratch, name: &str) {
    run(folder, &format!("qemu-img create -q -u -f qcow2 -b {name} -F raw top.qcow2 4M"));
}

#[test]
fn names_lead_nowhere_but_into_the_folder() {
    let Some(folder) = folder("names_lead_nowhere_but_into_the_folder") else { return };
    let elsewhere = Scratch::new();
    let secret = elsewhere.write("secret", &[1; SIZE]);
    let folder_name = elsewhere.dir().file_name().unwrap().to_str().unwrap().to_owned();
    symlink(&secret, folder.path("link")).unwrap();
    symlink(elsewhere.dir(), folder.path("sub")).unwrap();
    let secret = secret.to_str().unwrap();
    let detour = format!("../{folder_name}/secret");
    for name in [secret, &format!("file:{secret}"), &detour, "link", "sub/secret"] {
        upon(&folder, name);
        let error = qcow2(&folder, "top.qcow2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{name}: {}", said(&error));
        assert!(said(&error).contains("outside its folder"), "{name}: {}", said(&error));
        assert!(said(&error).contains("--allow-backing"), "{name}: {}", said(&error));
        let folders = Allowed::Folders(vec![elsewhere.dir().to_path_buf()]);
        for allowed in [folders, Allowed::Anywhere] {
            let chain = Chain::open(&folder.path("top.qcow2"), Format::Qcow2, &allowed).unwrap();
            assert_eq!(chain.layers().len(), 2, "{name}");
        }
    }
    for name in ["nbd://localhost/x", "fat:/etc", "json:{}", "host_device:/dev/sda", "file:base"] {
        upon(&folder, name);
        for allowed in [Allowed::ImageFolder, Allowed::Anywhere] {
            let top = folder.path("top.qcow2");
            let error = Chain::open(&top, Format::Qcow2, &allowed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SourceUnusable, "{name}");
            assert!(said(&error).contains("not the path of a file"), "{}", said(&error));
        }
    }
    for (name, path) in [("inside", "inside"), ("./a:b", "a:b"), ("in/../inside", "inside")] {
        fs::create_dir_all(folder.path("in")).unwrap();
        folder.write(path, &[1; SIZE]);
        upon(&folder, name);
        assert_eq!(qcow2(&folder, "top.qcow2").unwrap().layers().len(), 2, "{name}");
    }
    upon(&folder, "in");
    let error = qcow2(&folder, "top.qcow2").unwrap_err();
    assert!(error.message().contains("neither a regular file"), "{error}");
    upon(&folder, "/dev/null");
    let anywhere = Chain::open(&folder.path("top.qcow2"), Format::Qcow2, &Allowed::Anywhere);
    let error = anywhere.unwrap_err();
    assert!(error.message().contains("neither a regular file"), "{error}");
}

#[test]
fn a_format_that_is_not_said_is_not_guessed() {
    let Some(folder) = folder("a_format_that_is_not_said_is_not_guessed") else { return };
    three(&folder);
    // QEMU writes no image without the format any more; old ones are there.
    run(&folder, "qemu-img rebase -u -b mid.qcow2 -F qcow2 top.qcow2");
    let mut bytes = fs::read(folder.path("top.qcow2")).unwrap();
    let mark = [0xe2, 0x79, 0x2a, 0xca];
    let at = bytes.windows(4).position(|window| window == mark).unwrap();
    // An extension that nobody knows.
    bytes[at..at + 4].copy_from_slice(b"none");
    folder.write("top.qcow2", &bytes);
    let error = qcow2(&folder, "top.qcow2").unwrap_err();
    assert!(
        said(&error).contains("qemu-img rebase -u -F FORMAT -b mid.qcow2 "),
        "{}",
        said(&error)
    );
    run(&folder, "qemu-img rebase -u -F qcow2 -b mid.qcow2 top.qcow2");
    qcow2(&folder, "top.qcow2").unwrap();
    run(&folder, "qemu-img create -q -f vpc base.vpc 4M");
    run(&folder, "qemu-img rebase -u -F vpc -b base.vpc top.qcow2");
    let error = qcow2(&folder, "top.qcow2").unwrap_err();
    assert!(said(&error).contains("\"vpc\" is not a format"), "{}", said(&error));
}

#[test]
fn loops_and_long_chains_are_refused() {
    let Some(folder) = folder("loops_and_long_chains_are_refused") else { return };
    three(&folder);
    run(&folder, "qemu-img rebase -u -F qcow2 -b top.qcow2 mid.qcow2");
    let error = qcow2(&folder, "top.qcow2").unwrap_err();
    assert!(said(&error).contains("back into itself"), "{}", said(&error));
    fs::hard_link(folder.path("top.qcow2"), folder.path("again.qcow2")).unwrap();
    run(&folder, "qemu-img rebase -u -F qcow2 -b again.qcow2 top.qcow2");
    let error = qcow2(&folder, "top.qcow2").unwrap_err();
    assert!(said(&error).contains("back into itself"), "{}", said(&error));
    run(&folder, "qemu-img create -q -f qcow2 layer1 4M");
    for layer in 2..=17 {
        let below = format!("layer{}", layer - 1);
        run(&folder, &format!("qemu-img create -q -f qcow2 -F qcow2 -b {below} layer{layer}"));
    }
    assert_eq!(qcow2(&folder, "layer16").unwrap().layers().len(), 16);
    let error = qcow2(&folder, "layer17").unwrap_err();
    assert!(said(&error).contains("more than 16 layers"), "{}", said(&error));
}

#[test]
fn an_image_on_a_block_device_is_served() {
    let name = "an_image_on_a_block_device_is_served";
    let Some(folder) = folder(name) else { return };
    if !is_root() {
        return skip(name, "needs root, for a loop device");
    }
    let disk = three(&folder);
    let image = fs::read(folder.path("top.qcow2")).unwrap();
    let padded = folder.write("padded", &[image, vec![0; 1 << 20]].concat());
    let device = match Loop::new(&padded, 512) {
        Ok(device) => device,
        Err(why) => return skip(name, &why),
    };
    let path = device.path();
    let error = Chain::open(path, Format::Qcow2, &Allowed::ImageFolder).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "its base is not beside the device: {error:?}");
    let base = folder.path("mid.qcow2");
    let rebase = format!("qemu-img rebase -u -F qcow2 -b {} {}", base.display(), path.display());
    run(&folder, &rebase);
    let allowed = Allowed::Folders(vec![folder.dir().to_path_buf()]);
    let chain = Chain::open(path, Format::Qcow2, &allowed).unwrap();
    assert!(chain.top().file.is_block_device());
    let nodes = chain.blockdev_json();
    assert!(nodes.contains("host_device"), "{nodes}");
    assert!(served(&folder, &nodes) == disk);
}
