//! Without TLS.

use std::process::{Command, Stdio};

use voltar_engine::nbd::handshake::{Export, Greeting, HandshakeError, Replies, Wishes};
use voltar_tests::Scratch;

use crate::server::{Local, have};

fn negotiate(
    server: &mut Local,
    export: &str,
    contexts: &[&str],
) -> Result<Export, HandshakeError> {
    let mut stream = server.connect();
    Greeting::read(&mut stream)?.negotiate(&mut stream, &Wishes { export, contexts })
}

#[test]
fn nbdkit_agrees() {
    if !have("nbdkit_agrees", &["nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut server = Local::nbdkit(scratch.dir(), &["memory", "size=3M"]);
    let contexts = ["qemu:dirty-bitmap:b0", "base:allocation"];
    let export = negotiate(&mut server, "any", &contexts).unwrap();
    assert_eq!(export.size, 3 << 20);
    assert_ne!(export.replies, Replies::Simple);
    let names: Vec<&str> = export.contexts.iter().map(|context| context.name.as_str()).collect();
    assert_eq!(names, ["base:allocation"]);
    let flags = export.flags;
    assert!(flags.has_flush() && flags.has_fua() && flags.has_trim() && flags.has_write_zeroes());
    assert!(flags.is_multi_conn() && !flags.is_read_only());
}

#[test]
fn nbdkit_without_structured_replies_is_borne() {
    if !have("nbdkit_without_structured_replies_is_borne", &["nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut server = Local::nbdkit(scratch.dir(), &["--no-sr", "-r", "memory", "size=1M"]);
    let export = negotiate(&mut server, "", &["base:allocation"]).unwrap();
    assert_eq!((export.replies, export.contexts), (Replies::Simple, vec![]));
    assert!(export.flags.is_read_only());
}

#[test]
fn block_sizes_are_the_servers() {
    if !have("block_sizes_are_the_servers", &["nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let sizes = [
        "--filter=blocksize-policy",
        "memory",
        "size=1M",
        "blocksize-minimum=512",
        "blocksize-preferred=64K",
        "blocksize-maximum=256K",
    ];
    let mut server = Local::nbdkit(scratch.dir(), &sizes);
    let export = negotiate(&mut server, "", &[]).unwrap();
    let sizes = (export.block_min, export.block_preferred, export.block_max);
    assert_eq!(sizes, (512, 64 << 10, 256 << 10));
}

#[test]
fn handshakes_of_old_are_refused_by_name() {
    if !have("handshakes_of_old_are_refused_by_name", &["nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut oldstyle = Local::nbdkit(scratch.dir(), &["-o", "memory", "size=1M"]);
    let error = negotiate(&mut oldstyle, "", &[]).unwrap_err();
    assert!(matches!(error, HandshakeError::OldStyle), "{error}");
    let scratch = Scratch::new();
    let mut masked = Local::nbdkit(scratch.dir(), &["--mask-handshake=0", "memory", "size=1M"]);
    let error = negotiate(&mut masked, "", &[]).unwrap_err();
    assert!(matches!(error, HandshakeError::NoFixedNewstyle), "{error}");
}

#[test]
fn exports_are_listed() {
    if !have("exports_are_listed", &["nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let args = ["--filter=exportname", "memory", "size=1M", "exportname=a", "exportname=b"];
    let args = [&args[..], &["exportname-list=explicit", "exportname-strict=true"]].concat();
    let mut server = Local::nbdkit(scratch.dir(), &args);
    let mut stream = server.connect();
    let names = Greeting::read(&mut stream).unwrap().list_exports(&mut stream).unwrap();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn qemu_nbd_agrees_and_knows_its_exports() {
    if !have("qemu_nbd_agrees_and_knows_its_exports", &["qemu-nbd", "qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    let image = image.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", image, "64M"]);
    qemu_img(&["bitmap", "--add", image, "b0"]);
    let args = ["-r", "-f", "qcow2", "-x", "disk", "-A", "-B", "b0", image];
    let mut server = Local::qemu_nbd(scratch.dir(), &args);

    let contexts = ["qemu:dirty-bitmap:b0", "base:allocation", "qemu:allocation-depth", "x:none"];
    let export = negotiate(&mut server, "disk", &contexts).unwrap();
    assert_eq!(export.size, 64 << 20);
    assert_ne!(export.replies, Replies::Simple);
    assert!(export.flags.is_read_only() && export.flags.is_multi_conn());
    let names: Vec<&str> = export.contexts.iter().map(|context| context.name.as_str()).collect();
    assert_eq!(names, contexts[..3]);

    for export in ["other", ""] {
        match negotiate(&mut server, export, &contexts).unwrap_err() {
            HandshakeError::UnknownExport { known, .. } => {
                assert_eq!(known, Some(vec!["disk".to_owned()]), "{export}");
            }
            error => panic!("{export}: {error}"),
        }
    }
}

fn qemu_img(words: &[&str]) {
    let status = Command::new("qemu-img").args(words).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "qemu-img {words:?}");
}
