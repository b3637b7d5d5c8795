//! Makes an archive whose index holds many chunks (100 million by default), from a volume that is
//! computed while it is read, and says what that took: `big-index ARCHIVE [CHUNKS]`.
//!
//! `benches/big-index.sh` runs it and measures opening, extending and verifying the result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use voltar_benches::generated::Generated;
use voltar_engine::backup;
use voltar_engine::device::Device;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, OnReadError, ParentChoice,
};
use voltar_engine::source::View;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let archive = PathBuf::from(args.next().ok_or("usage: big-index ARCHIVE [CHUNKS]")?);
    let chunks: u64 = args.next().map_or(Ok(100_000_000), |text| text.parse())?;
    let device = Generated::new(chunks, 1);
    let view = View {
        name: "generated".into(),
        description: format!("{chunks} generated chunks"),
        size: device.len()?,
        device: Arc::new(device),
        change_source: None,
        degraded: None,
    };
    let request = BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::File(archive),
        parent: ParentChoice::Auto,
        changes: Changes::Auto,
        audit_share: 0.0,
        compression: Compression::Zstd(-20),
        chunk_len: Some(4096),
        attach: Vec::new(),
        tags: BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    };
    let report = backup::run_on(&request, &[view], &Context::default())?;
    println!("{chunks} chunks, {} bytes stored, {:.1} s", report.stored_bytes, report.elapsed_s);
    Ok(())
}
