//! The reader of thin pools' metadata against the real tools: random histories of two devices,
//! written by `thin_restore`, compared by `thin_delta` and by us.

use std::fs::File;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::source::thin_metadata::{Mapping, Metadata, MetadataBlocks, MetadataError};
use voltar_tests::thin_pool::{Differences, Map, MetadataFile, delta, push, restore};

use super::rig::for_seeds;

/// What we say of two devices.
fn ours(blocks: &dyn MetadataBlocks, old: u32, new: u32) -> Result<Differences, MetadataError> {
    let metadata = Metadata::open(blocks, 0)?;
    let device = |id| Ok(metadata.device(id)?.expect("thin_restore made it"));
    let mut differences = Vec::new();
    metadata.diff(&device(old)?, &device(new)?, |range, difference| {
        push(&mut differences, range, difference);
    })?;
    Ok(differences)
}

/// A device, and what it became: runs of blocks mapped anew, moved, given back.
fn history(random: &mut StdRng) -> [Map; 2] {
    let mut free = 0..;
    let mut old = Map::new();
    let blocks: u64 = random.random_range(1..4000);
    for _ in 0..random.random_range(0..60) {
        change(&mut old, blocks, random, &mut free);
    }
    let mut new = old.clone();
    for _ in 0..random.random_range(0..40) {
        change(&mut new, blocks, random, &mut free);
    }
    [old, new]
}

fn change(map: &mut Map, blocks: u64, random: &mut StdRng, free: &mut impl Iterator<Item = u64>) {
    let start = random.random_range(0..blocks);
    let end = (start + random.random_range(1..200)).min(blocks);
    let is_given_back = random.random_bool(0.3);
    // Every other block, sometimes: as fragmented as can be.
    let step = if random.random_bool(0.2) { 2 } else { 1 };
    for block in (start..end).step_by(step) {
        if is_given_back {
            map.remove(&block);
        } else {
            map.insert(block, free.next().expect("there is always one more"));
        }
    }
}

#[test]
fn random_histories_are_told_as_thin_delta_tells_them() {
    for_seeds("random_histories_are_told_as_thin_delta_tells_them", 12, |seed| {
        let scratch = tempfile::tempdir().unwrap();
        let (path, xml) = (scratch.path().join("metadata"), scratch.path().join("xml"));
        let devices = history(&mut StdRng::seed_from_u64(seed));
        restore(&devices, &path, 1024, &xml);
        let file = MetadataFile(File::open(&path).unwrap());
        assert_eq!(ours(&file, 1, 2).unwrap(), delta(&path, 1, 2));
        let metadata = Metadata::open(&file, 0).unwrap();
        for (id, map) in (1..).zip(&devices) {
            let device = metadata.device(id).unwrap().unwrap();
            let mut mapped = Map::new();
            let take = |mapping: Mapping| {
                mapped.insert(mapping.thin, mapping.data);
            };
            metadata.mappings(&device, take).unwrap();
            assert!(mapped == *map, "device {id}");
        }
        assert_eq!(metadata.device(3).unwrap(), None);
    });
}
