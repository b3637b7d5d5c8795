//! LVM, by its command-line tools: what volumes there are, and making and removing snapshots.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use serde::Deserialize;

use super::command::Tool;
use super::dm;
use crate::error::{Error, ErrorKind, Result};

/// The tag of everything that voltar makes.
pub const TAG: &str = "voltar";
/// The tag of a snapshot that no later backup has a use for.
pub const TAG_TEMPORARY: &str = "voltar.temporary";

/// What stands between a volume's name and the number of its snapshot.
const INFIX: &str = "_voltar_";
/// Longest name of a volume, in bytes.
const NAME_LEN_MAX: usize = 127;
/// How long a device that was just closed may still be in use: whoever looks at new devices
/// (udev) may have it open.
const PATIENCE: Duration = Duration::from_secs(15);
const NAP: Duration = Duration::from_millis(100);

/// What the mapping of a volume is called by the kernel: this, and twice 32 characters.
const UUID_PREFIX: &str = "LVM-";
const UUID_LEN: usize = 32;

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its volume group's name.
    pub group: String,
    /// Its volume group's identity.
    pub group_uuid: String,
    /// Its name.
    pub name: String,
    /// Its identity, which outlives both.
    pub uuid: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
    /// The identity of the volume that it is a snapshot of; empty without one.
    pub origin_uuid: String,
    /// Whether it can be written to.
    pub is_writable: bool,
    /// Whether its device is there.
    pub is_active: bool,
    /// Whether it is being merged into its origin.
    pub is_merging: bool,
    /// Its tags.
    pub tags: Vec<String>,
}

/// What a logical volume is, as far as a backup cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a thin pool.
    Thin {
        /// The pool's name.
        pool: String,
        /// The pool's identity.
        pool_uuid: String,
        /// Its id in the pool's metadata.
        id: u32,
    },
    /// A thick snapshot: it stands still by itself.
    ThickSnapshot,
    /// Any other that holds data: linear, striped, mirrored, cached.
    Thick,
    /// A part of others.
    Internal,
}

impl Volume {
    /// As the user writes it.
    pub fn label(&self) -> String {
        format!("lvm:{}/{}", self.group, self.name)
    }

    /// As LVM's tools take it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// The name of its mapping.
    pub fn dm_name(&self) -> String {
        dm::name_of(&self.group, &self.name)
    }

    /// Its device, if it is active.
    pub fn path(&self) -> PathBuf {
        dm::path_of(&self.dm_name())
    }

    /// Whether voltar made it, and nobody made it his own since: it can still not be written to, and
    /// has the name that it was given.
    pub fn is_ours(&self) -> bool {
        let number = self.name.rsplit_once(INFIX).map_or("", |(_, number)| number);
        let is_named = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        self.has_tag(TAG) && !self.is_writable && is_named
    }

    /// Its identity and its group's: a clone of a group has volumes of the same identity.
    pub fn identity(&self) -> String {
        format!("{}/{}", self.group_uuid, self.uuid)
    }

    /// Whether voltar made it, as a snapshot of this volume.
    pub fn is_ours_of(&self, origin: &Volume) -> bool {
        self.is_ours()
            && (&self.group_uuid, &self.origin_uuid) == (&origin.group_uuid, &origin.uuid)
    }

    /// Whether it carries `tag`.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }
}

/// `lvs --reportformat json`.
#[derive(Deserialize)]
struct Answer {
    report: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    lv: Vec<HashMap<String, String>>,
}

const FIELDS: &str = "vg_name,vg_uuid,lv_name,lv_uuid,lv_size,lv_layout,lv_role,origin_uuid,pool_lv,\
                      pool_lv_uuid,thin_id,lv_permissions,lv_active,lv_merging,lv_tags";

/// The volumes of a group, or of all of them; internal ones as well.
///
/// # Errors
/// Of the tool; `NotFound` for a group that is not there.
pub fn volumes(group: Option<&str>) -> Result<Vec<Volume>> {
    let tool = Tool::new("lvs").args(["--all", "--reportformat", "json", "--units", "b"]);
    let tool = tool.args(["--nosuffix", "-o", FIELDS]);
    let answer = tool.args(group).answer().map_err(|error| {
        Error::new(ErrorKind::NotFound, "cannot ask for the volumes of the volume group")
            .on(group.map_or_else(|| "lvm".to_owned(), |group| format!("lvm:{group}")))
            .because(error)
            .hint("`vgs` lists the volume groups")
    })?;
    parse(&answer)
}

/// A thin pool of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinPool {
    /// Its name.
    pub name: String,
    /// Whether a block that is mapped reads as zeroes where nothing was written to it yet.
    pub zeroes: bool,
}

/// A group's thin pools.
///
/// # Errors
/// Of the tool.
pub fn thin_pools(group: &str) -> Result<Vec<ThinPool>> {
    let tool = Tool::new("lvs").args(["--noheadings", "--binary", "--separator", ","]);
    let tool = tool.args(["-o", "lv_name,zero", "-S", "segtype=thin-pool"]);
    let pools = tool.arg(group).answer()?;
    let pool = |line: &str| {
        let (name, zero) = line.trim().split_once(',')?;
        Some(ThinPool { name: name.to_owned(), zeroes: zero == "1" })
    };
    Ok(pools.lines().filter_map(pool).collect())
}

/// A digest of where on which disks a volume lies, through the volumes that it consists of: other
/// bytes may stand where it was moved or grew back.
///
/// # Errors
/// `Unsupported` if not all of it is found; of the tool.
pub fn layout(group: &str, volume: &str) -> Result<String> {
    let tool = Tool::new("lvs").args(["--all", "--noheadings", "--separator", "\t"]);
    let segments = tool.args(["-o", "lv_name,seg_start,seg_pe_ranges", group]).answer()?;
    let disks = Tool::new("pvs").args(["--noheadings", "-o", "pv_name,pv_uuid"]).answer()?;
    let mut places = String::new();
    match Layout::new(&segments, &disks).write(volume, 0, &mut places) {
        Some(()) => Ok(blake3::hash(places.as_bytes()).to_hex().to_string()),
        None => Err(Error::new(ErrorKind::Unsupported, "not all places of a volume are known")
            .on(format!("lvm:{group}/{volume}"))),
    }
}

/// How deep volumes may consist of one another: a cached pool of mirrors is at five.
const LAYERS_MAX: u32 = 16;
/// Longest description of where a volume lies, in bytes.
const PLACES_LEN_MAX: usize = 1 << 20;

/// Where the volumes of a group lie.
struct Layout<'a> {
    /// The segments of a volume: where each starts, and the extents that it is on.
    segments: HashMap<&'a str, Vec<(&'a str, &'a str)>>,
    /// The identities of disks, whose names may be others after the host's next start.
    disks: HashMap<&'a str, &'a str>,
}

impl<'a> Layout<'a> {
    fn new(segments: &'a str, disks: &'a str) -> Layout<'a> {
        let mut layout = Layout { segments: HashMap::new(), disks: HashMap::new() };
        for line in segments.lines() {
            let mut fields = line.trim_start().split('\t');
            if let (Some(name), Some(start), Some(ranges)) =
                (fields.next(), fields.next(), fields.next())
            {
                layout.segments.entry(bare(name)).or_default().push((start, ranges));
            }
        }
        let disks = disks.lines().map(str::split_whitespace);
        layout.disks.extend(disks.filter_map(|mut words| Some((words.next()?, words.next()?))));
        layout
    }

    /// Appends where `volume` lies; `None` if that is not known.
    fn write(&self, volume: &str, layer: u32, places: &mut String) -> Option<()> {
        let segments = self.segments.get(volume).filter(|_| layer < LAYERS_MAX)?;
        for (start, ranges) in segments {
            places.push_str(start);
            for range in ranges.split_whitespace() {
                let (place, extents) = range.rsplit_once(':')?;
                places.push_str(&format!(" {extents}@"));
                match self.disks.get(place) {
                    Some(disk) => places.push_str(disk),
                    None => {
                        places.push('(');
                        self.write(bare(place), layer + 1, places)?;
                        places.push(')');
                    }
                }
            }
            places.push(';');
        }
        (places.len() <= PLACES_LEN_MAX).then_some(())
    }
}

fn parse(answer: &str) -> Result<Vec<Volume>> {
    let unknown = |error: String| {
        Error::new(ErrorKind::Unsupported, "lvs says something else than was expected")
            .because(error)
    };
    let answer: Answer =
        serde_json::from_str(answer).map_err(|error| unknown(error.to_string()))?;
    let mut volumes: Vec<Volume> = Vec::new();
    for row in answer.report.iter().flat_map(|report| &report.lv) {
        let volume = volume_of(row).ok_or_else(|| unknown(format!("{row:?}")))?;
        // A volume of several segments has several rows.
        if !volumes.iter().any(|known| known.identity() == volume.identity()) {
            volumes.push(volume);
        }
    }
    Ok(volumes)
}

fn volume_of(row: &HashMap<String, String>) -> Option<Volume> {
    let field = |name: &str| row.get(name).map(String::as_str);
    let has = |list: &str, word: &str| list.split(',').any(|own| own == word);
    let (layout, role) = (field("lv_layout")?, field("lv_role")?);
    let pool = field("pool_lv")?;
    let kind = match () {
        () if has(role, "private") || has(layout, "pool") => Kind::Internal,
        () if has(layout, "thin") && !pool.is_empty() => Kind::Thin {
            pool: bare(pool).to_owned(),
            pool_uuid: field("pool_lv_uuid")?.to_owned(),
            id: field("thin_id")?.parse().ok()?,
        },
        () if has(role, "thicksnapshot") => Kind::ThickSnapshot,
        () => Kind::Thick,
    };
    let tags = field("lv_tags")?.split(',').filter(|tag| !tag.is_empty());
    Some(Volume {
        group: field("vg_name")?.to_owned(),
        group_uuid: field("vg_uuid")?.to_owned(),
        name: bare(field("lv_name")?).to_owned(),
        uuid: field("lv_uuid")?.to_owned(),
        size: field("lv_size")?.parse().ok()?,
        kind,
        origin_uuid: field("origin_uuid")?.to_owned(),
        is_writable: !field("lv_permissions")?.starts_with("read-only"),
        is_active: matches!(field("lv_active")?, "active" | "1"),
        is_merging: matches!(field("lv_merging")?, "merging" | "1"),
        tags: tags.map(str::to_owned).collect(),
    })
}

/// Without the brackets that mark a hidden volume.
fn bare(name: &str) -> &str {
    name.trim_matches(['[', ']'])
}

/// The volume of this name.
///
/// # Errors
/// `NotFound` if there is none; of the tool.
pub fn volume(group: &str, name: &str) -> Result<Volume> {
    let found = volumes(Some(group))?.into_iter().find(|volume| volume.name == name);
    found.ok_or_else(|| missing(&format!("lvm:{group}/{name}")))
}

fn missing(label: &str) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such logical volume")
        .on(label)
        .hint("`lvs` lists them")
}

/// The identities of group and volume whose device `path` leads to, as [`Volume::identity`]; `None` if
/// it is not one of LVM. The devices that volumes consist of are not any volume's.
pub fn uuid_of_device(path: &Path) -> Option<String> {
    uuid_of_mapping(&mapping_of(path)?)
}

/// Whether `path` leads to a device that volumes of LVM consist of: the data or metadata of a pool,
/// what a snapshot and its origin share.
pub fn is_part(path: &Path) -> bool {
    mapping_of(path).is_some_and(|name| is_name_of_part(&name))
}

fn is_name_of_part(mapping: &str) -> bool {
    mapping.starts_with(UUID_PREFIX) && uuid_of_mapping(mapping).is_none()
}

/// What the kernel calls the mapping whose device `path` leads to, if it is one.
fn mapping_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = fs::metadata(path).ok().filter(|node| node.file_type().is_block_device())?;
    let number = metadata.rdev();
    let place = format!("/sys/dev/block/{}:{}/dm/uuid", libc::major(number), libc::minor(number));
    Some(fs::read_to_string(place).ok()?.trim().to_owned())
}

/// The identities in the name that a volume's mapping has for the kernel, with LVM's dashes.
fn uuid_of_mapping(name: &str) -> Option<String> {
    let both = name.strip_prefix(UUID_PREFIX)?;
    if both.len() != 2 * UUID_LEN || !both.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let (group, volume) = both.split_at(UUID_LEN);
    Some(format!("{}/{}", dashed(group), dashed(volume)))
}

/// An identity of 32 characters as LVM writes it.
fn dashed(mut rest: &str) -> String {
    let parts = [6, 4, 4, 4, 4, 4, 6].map(|len| {
        let (part, more) = rest.split_at(len);
        rest = more;
        part
    });
    parts.join("-")
}

/// The volume with this [identity](Volume::identity), of all groups.
///
/// # Errors
/// `NotFound`; of the tool.
pub fn volume_of_device(path: &Path, identity: &str) -> Result<Volume> {
    let found = volumes(None)?.into_iter().find(|volume| volume.identity() == identity);
    found.ok_or_else(|| missing(&path.display().to_string()))
}

/// A snapshot to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewSnapshot<'a> {
    /// Of what.
    pub origin: &'a Volume,
    /// Its name.
    pub name: &'a str,
    /// Bytes for what changes in a thick origin; `None` for a thin one.
    pub cow_bytes: Option<u64>,
    /// Whether no later backup has a use for it.
    pub is_temporary: bool,
    /// A tag that says which run made it.
    pub run: &'a str,
}

impl NewSnapshot<'_> {
    /// Makes it: read-only, tagged as voltar's, a thin one not to be activated by the way.
    ///
    /// # Errors
    /// Of the tool, with what can be done.
    pub fn create(&self) -> Result<()> {
        let NewSnapshot { origin, name, cow_bytes, is_temporary, run } = *self;
        let mut tool = Tool::new("lvcreate").args(["--yes", "--snapshot", "--permission", "r"]);
        tool = tool.args(["--addtag", TAG, "--addtag", run]);
        if is_temporary {
            tool = tool.args(["--addtag", TAG_TEMPORARY]);
        }
        tool = match cow_bytes {
            Some(bytes) => tool.args(["--size", &format!("{bytes}b")]),
            None => tool.args(["--setactivationskip", "y"]),
        };
        let tool = tool.args(["--name", name, &origin.full_name()]);
        let words = tool.words().to_owned();
        let ended = tool.run()?;
        if ended.status.success() {
            return Ok(());
        }
        let is_full = ended.complaints.contains("nsufficient free space");
        let kind = if is_full { ErrorKind::NoSpace } else { ErrorKind::SourceUnusable };
        let hint = match cow_bytes {
            Some(_) => {
                "free space in the volume group, take less of it with --cow-size SIZE, or read \
                 the volume as it is with --snapshot off"
            }
            None => "see what `lvs` says of the pool; --snapshot off reads the volume as it is",
        };
        Err(Error::new(kind, "cannot take a snapshot of the volume")
            .on(origin.label())
            .because(ended.failure(&words))
            .hint(hint))
    }
}

/// The first name for a snapshot of `origin` that none of `others` has.
pub fn snapshot_name(origin: &str, others: &[Volume]) -> String {
    // Room for any number.
    let base = &origin[..origin.len().min(NAME_LEN_MAX - INFIX.len() - 20)];
    let names = (1..).map(|number: u64| format!("{base}{INFIX}{number}"));
    let mut free = names.filter(|name| others.iter().all(|other| other.name != *name));
    free.next().unwrap_or_default()
}

/// Makes the volume's device appear, whatever it says of being skipped.
///
/// # Errors
/// Of the tool.
pub fn activate(volume: &Volume) -> Result<()> {
    let tool = Tool::new("lvchange").args(["--activate", "y", "--ignoreactivationskip"]);
    tool.arg(volume.full_name()).answer().map(drop)
}

/// Makes the volume's device go.
///
/// # Errors
/// Of the tool, if it is in use for longer than it may.
pub fn deactivate(volume: &Volume) -> Result<()> {
    patiently(|| {
        let tool = Tool::new("lvchange").args(["--activate", "n"]);
        tool.arg(volume.full_name()).answer().map(drop)
    })
}

/// Removes a snapshot that voltar made.
///
/// # Errors
/// Of the tool, if it is in use for longer than it may.
pub fn remove(snapshot: &Volume) -> Result<()> {
    // By its identity: the name may be another volume's by now.
    let selection = format!("lv_uuid=\"{}\" && lv_tags=\"{TAG}\"", snapshot.uuid);
    let removed = patiently(|| {
        let tool = Tool::new("lvremove").args(["--yes", "--select", &selection]);
        tool.arg(&snapshot.group).answer().map(drop)
    });
    removed.map_err(|error| {
        Error::new(error.kind(), "cannot remove the snapshot").on(snapshot.label()).because(error)
    })
}

/// Removes the volume of this name, which was created a moment ago.
///
/// # Errors
/// Of the tool, if it is in use for longer than it may.
pub fn remove_named(group: &str, name: &str) -> Result<()> {
    patiently(|| {
        let tool = Tool::new("lvremove").args(["--yes", &format!("{group}/{name}")]);
        tool.answer().map(drop)
    })
}

/// Tries until it works, or for too long.
fn patiently(act: impl Fn() -> Result<()>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match act() {
            Err(_) if Instant::now() < end => thread::sleep(NAP),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[(&str, &str)]) -> String {
        let defaults = FIELDS.split(',').map(|name| (name, ""));
        let mut row: HashMap<&str, &str> = defaults.collect();
        row.extend([("lv_size", "12582912"), ("lv_layout", "linear"), ("lv_role", "public")]);
        row.extend(fields.iter().copied());
        serde_json::to_string(&row).unwrap()
    }

    fn volumes_of(rows: &[&[(&str, &str)]]) -> Result<Vec<Volume>> {
        let rows: Vec<String> = rows.iter().map(|fields| row(fields)).collect();
        parse(&format!(r#"{{"report":[{{"lv":[{}]}}]}}"#, rows.join(",")))
    }

    #[test]
    fn kinds_of_volumes_are_told_apart() {
        let thin = ("lv_layout", "thin,sparse");
        let pool = [("pool_lv", "[pool]"), ("pool_lv_uuid", "p"), ("thin_id", "7")];
        let found = volumes_of(&[
            &[("lv_uuid", "a"), thin, pool[0], pool[1], pool[2]],
            &[("lv_uuid", "b"), ("lv_layout", "thin,pool"), ("lv_role", "private")],
            &[("lv_uuid", "c"), ("lv_role", "public,snapshot,thicksnapshot")],
            &[("lv_uuid", "d"), ("lv_layout", "raid,raid1")],
            &[("lv_uuid", "d"), ("lv_layout", "raid,raid1")],
            &[("lv_uuid", "e"), ("lv_role", "private,thin,pool,metadata")],
        ])
        .unwrap();
        let kinds: Vec<Kind> = found.into_iter().map(|volume| volume.kind).collect();
        let thin = Kind::Thin { pool: "pool".into(), pool_uuid: "p".into(), id: 7 };
        assert_eq!(kinds, [thin, Kind::Internal, Kind::ThickSnapshot, Kind::Thick, Kind::Internal]);
    }

    #[test]
    fn what_lvs_did_not_say_is_not_guessed() {
        assert!(volumes_of(&[&[("lv_size", "much")]]).is_err());
        let thin = [("lv_layout", "thin,sparse"), ("pool_lv", "pool"), ("thin_id", "")];
        assert!(volumes_of(&[&thin]).is_err());
        assert!(parse("{}").is_err());
        assert!(parse(r#"{"report":[{"lv":[{"lv_name":"x"}]}]}"#).is_err());
    }

    #[test]
    fn only_what_carries_tag_and_origin_and_was_left_alone_is_ours() {
        let (name, read_only) = (("lv_name", "v_voltar_1"), ("lv_permissions", "read-only"));
        let (tagged, origin) = (("lv_tags", "x,voltar"), ("origin_uuid", "o"));
        let found = volumes_of(&[
            &[("lv_uuid", "a"), name, read_only, tagged, origin],
            &[("lv_uuid", "b"), name, read_only, ("lv_tags", "voltar-like"), origin],
            &[("lv_uuid", "c"), name, read_only, tagged],
            &[("lv_uuid", "d"), name, ("lv_permissions", "writeable"), tagged, origin],
            &[("lv_uuid", "e"), ("lv_name", "rescued"), read_only, tagged, origin],
        ])
        .unwrap();
        let origin = Volume { uuid: "o".into(), ..found[0].clone() };
        let ours: Vec<bool> = found.iter().map(|volume| volume.is_ours_of(&origin)).collect();
        assert_eq!(ours, [true, false, false, false, false]);
        let copy = Volume { group_uuid: "of a clone of the group".into(), ..origin };
        assert!(!found[0].is_ours_of(&copy));
    }

    #[test]
    fn a_mapping_names_its_volume() {
        let group = "g".repeat(32);
        let volume = "abcdef0123456789ABCDEF0123uvwxyz";
        assert_eq!(
            uuid_of_mapping(&format!("LVM-{group}{volume}")).as_deref(),
            Some("gggggg-gggg-gggg-gggg-gggg-gggg-gggggg/abcdef-0123-4567-89AB-CDEF-0123-uvwxyz")
        );
        for other in [
            format!("LVM-{group}{volume}-tpool"),
            format!("CRYPT-{group}{volume}"),
            format!("LVM-{volume}"),
            format!("LVM-{group}{}ü", &volume[..30]),
        ] {
            assert_eq!(uuid_of_mapping(&other), None, "{other}");
            assert_eq!(is_name_of_part(&other), other.starts_with("LVM"), "{other}");
        }
        assert!(!is_name_of_part(&format!("LVM-{group}{volume}")));
    }

    #[test]
    fn a_volume_lies_on_disks_whatever_is_between_and_however_they_are_called() {
        let segments = "  v\t0 \t/dev/sda:0-15\n  v\t16\tm_rimage_0:0-1 [m_rimage_1]:0-1\n  \
                        [m_rimage_0]\t0\t/dev/sdb:3-4\n  [m_rimage_1]\t0\t/dev/sda:20-21\n  \
                        loop\t0\tloop:0-1\n  lost\t0\t[unknown]:0-1\n";
        let lies = |segments: &str, disks: &str, volume| {
            let mut places = String::new();
            Layout::new(segments, disks).write(volume, 0, &mut places).map(|()| places)
        };
        let disks = "  /dev/sda aaaa-1\n  /dev/sdb  bbbb-2\n";
        let places = lies(segments, disks, "v").unwrap();
        assert_eq!(places, "0  0-15@aaaa-1;16 0-1@(0 3-4@bbbb-2;) 0-1@(0 20-21@aaaa-1;);");
        let renamed = segments.replace("/dev/sdb", "/dev/vdc");
        let names = "  /dev/vdc bbbb-2\n  /dev/sda aaaa-1\n";
        assert_eq!(lies(&renamed, names, "v").as_ref(), Some(&places));
        let moved = segments.replace("/dev/sdb:3-4", "/dev/sdb:5-6");
        assert_ne!(lies(&moved, disks, "v"), Some(places));
        for unknown in ["loop", "lost", "none"] {
            assert_eq!(lies(segments, disks, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_snapshot_has_a_free_name_that_is_not_too_long() {
        let taken = volumes_of(&[
            &[("lv_uuid", "a"), ("lv_name", "v_voltar_1")],
            &[("lv_uuid", "b"), ("lv_name", "[v_voltar_2]")],
        ])
        .unwrap();
        assert_eq!(snapshot_name("v", &taken), "v_voltar_3");
        assert!(snapshot_name(&"n".repeat(127), &[]).len() <= NAME_LEN_MAX);
    }
}
