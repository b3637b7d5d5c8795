//! Every limit of the format, with its reason. `FORMAT.md` section 11 repeats them; a test
//! compares the two.

/// Records start and end at multiples of this many bytes, so that a new record never shares a
/// device block with a committed one.
pub const BLOCK_LEN: usize = 4096;
/// Frames start at multiples of this many bytes from their segment's start, so that a scan after
/// damage has few places to look at.
pub const FRAME_ALIGN: usize = 64;
/// Shortest chunk. Below it the tables outweigh what deduplication saves.
pub const CHUNK_LEN_MIN: u32 = 4 << 10;
/// Longest chunk: one chunk fills one frame.
pub const CHUNK_LEN_MAX: u32 = 1 << 20;
/// Chunk length when nobody chooses.
pub const CHUNK_LEN_DEFAULT: u32 = 64 << 10;
/// Most raw bytes in a frame: bounds what a reader must hold to decode one.
pub const FRAME_RAW_LEN_MAX: u32 = 1 << 20;
/// Most chunks in a frame: a full frame of the shortest chunks.
pub const FRAME_CHUNKS_MAX: u16 = 256;
/// Most stored bytes of a frame: header, entries, and a payload that is never longer than raw.
pub const FRAME_STORED_LEN_MAX: u32 = 64 + 48 * 256 + FRAME_RAW_LEN_MAX;
/// A writer seals a data segment once it holds this many bytes, so that little is lost with an
/// unsealed one and its table is small.
pub const SEGMENT_LEN_TARGET: u64 = 32 << 20;
/// Most bytes in a data segment: bounds the search for the last commit.
pub const SEGMENT_LEN_MAX: u64 = 64 << 20;
/// Chunks at which a writer seals a data segment; one more frame of them may follow. Bounds its
/// table to 2.6 MiB.
pub const SEGMENT_CHUNKS_MAX: u32 = 32 << 10;
/// Children of a map node: a level-0 node of data is 8464 bytes and covers 16 MiB of volume.
pub const MAP_FANOUT: usize = 256;
/// Highest level of a map node. 256^7 chunks exceed any 64-bit volume.
pub const MAP_LEVEL_MAX: u8 = 6;
/// Longest volume. Leaves headroom in 64-bit arithmetic.
pub const VOLUME_LEN_MAX: u64 = 1 << 60;
/// Most index runs in a commit. Bounds a commit to a few MiB.
pub const RUNS_MAX: u32 = 4096;
/// Longest manifest, in bytes of JSON.
pub const MANIFEST_LEN_MAX: u32 = 4 << 20;
/// Most volumes in a snapshot.
pub const VOLUMES_MAX: usize = 1024;
/// Longest name of a volume, a tag or an attached file, in bytes of UTF-8.
pub const NAME_LEN_MAX: usize = 255;
/// Longest attached file.
pub const ATTACHED_LEN_MAX: u64 = 64 << 20;
/// Most attached files in a snapshot.
pub const ATTACHED_MAX: usize = 256;
/// Most unreadable ranges listed for a volume; neighbours are merged to stay below it.
pub const UNREADABLE_MAX: usize = 4096;
/// Most bytes of a commit record: head, runs and manifest, rounded up.
pub const COMMIT_LEN_MAX: u64 = 8 << 20;
/// Most entries in an index run: 2^36 chunks are 4 PiB of 64 KiB chunks.
pub const RUN_ENTRIES_MAX: u64 = 1 << 36;

const _: () = {
    assert!(CHUNK_LEN_MIN.is_power_of_two() && CHUNK_LEN_MAX.is_power_of_two());
    assert!(CHUNK_LEN_MAX <= FRAME_RAW_LEN_MAX);
    assert!(FRAME_RAW_LEN_MAX / CHUNK_LEN_MIN <= FRAME_CHUNKS_MAX as u32);
    assert!(FRAME_STORED_LEN_MAX as u64 + SEGMENT_LEN_TARGET < SEGMENT_LEN_MAX);
    assert!(BLOCK_LEN.is_multiple_of(FRAME_ALIGN));
    assert!(
        128 + 192 + RUNS_MAX as u64 * 80 + MANIFEST_LEN_MAX as u64 + BLOCK_LEN as u64
            <= COMMIT_LEN_MAX
    );
};
