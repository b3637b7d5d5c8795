//! Turns arguments into requests, once, against the world.
//!
//! Here defaults meet the machine: which words are paths, what volumes are called, which moment a
//! date means, where notes are kept. What comes out is complete: running it asks nothing more.

mod place;
mod selector;
mod state;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use voltar_engine::image::files::Allowed;
use voltar_engine::image::format::Format;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Context, Dedup, Delta, FolderRequest, Holding, Keep, NewVolumes,
    OnDamage, OnReadError, ParentChoice, Place, RestoreRequest, Selector, SnapshotUse,
    SourceRequest, TargetRequest, Targets, VerifyRequest,
};

use crate::args::{
    self, BackupArgs, Cli, HoldingArgs, ImageFormat, InspectArgs, ResourceArgs, RestoreArgs, Verb,
    VerifyArgs,
};
use crate::error::CommandError;
use crate::world::World;

/// Something to do, complete.
#[derive(Debug)]
pub struct Job {
    /// What it may use.
    pub resources: Resources,
    /// What it is.
    pub task: Task,
}

/// What a job may use; the rest of the engine's [`Context`] is who watches and how to stop it.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    args: Option<ResourceArgs>,
    limit_bytes_per_s: Option<u64>,
}

impl Resources {
    /// Writes these choices into a context.
    pub fn apply(&self, context: &mut Context) {
        context.limit_bytes_per_s = self.limit_bytes_per_s;
        if let Some(args) = self.args {
            context.io = args.io.into();
            context.threads = args.threads;
            context.memory_bytes = args.memory;
        }
    }
}

/// One verb with what it needs.
#[derive(Debug)]
pub enum Task {
    /// `backup`
    Backup(Box<BackupRequest>),
    /// `restore`
    Restore(RestoreRequest),
    /// `verify`
    Verify(VerifyRequest),
    /// `list`
    List(PathBuf),
    /// `show`
    Show(ShowTask),
    /// `diff`
    Diff(DiffTask),
    /// `inspect`
    Inspect(PathBuf),
    /// `inspect --salvage`
    Salvage(SalvageTask),
    /// `sources`
    Sources,
    /// `bench`
    Bench(Option<PathBuf>),
}

/// One snapshot to show.
#[derive(Debug)]
pub struct ShowTask {
    /// The archive's file.
    pub archive: PathBuf,
    /// Which snapshot.
    pub snapshot: Selector,
    /// The attached file whose bytes are wanted instead.
    pub attached: Option<String>,
}

/// Two snapshots to compare.
#[derive(Debug)]
pub struct DiffTask {
    /// The archive's file.
    pub archive: PathBuf,
    /// The older snapshot, as typed and as meant.
    pub old: (String, Selector),
    /// The newer snapshot, as typed and as meant.
    pub new: (String, Selector),
    /// Only this volume.
    pub volume: Option<String>,
}

/// An archive to salvage.
#[derive(Debug)]
pub struct SalvageTask {
    /// The archive's file.
    pub archive: PathBuf,
    /// The new archive's file.
    pub new: PathBuf,
}

/// Resolves a parsed command line. Every error is one of usage.
pub fn resolve(cli: Cli, world: &dyn World) -> Result<Job, CommandError> {
    let resources = resources(&cli.verb);
    let task = match cli.verb {
        Verb::Backup(args) => Task::Backup(Box::new(backup(*args, world)?)),
        Verb::Restore(args) => Task::Restore(restore(args, world)?),
        Verb::Verify(args) => Task::Verify(verify(&args, world)?),
        Verb::List(args) => Task::List(place::local(args.archive.as_os_str(), world)?),
        Verb::Show(args) => Task::Show(show(args, cli.output.json, world)?),
        Verb::Diff(args) => Task::Diff(diff(args, world)?),
        Verb::Inspect(args) => inspect(&args, world)?,
        Verb::Sources => Task::Sources,
        Verb::Bench(args) => Task::Bench(args.path),
    };
    Ok(Job { resources, task })
}

fn resources(verb: &Verb) -> Resources {
    let (args, limit_bytes_per_s) = match verb {
        Verb::Backup(args) => (Some(args.resources), args.limit),
        Verb::Restore(args) => (Some(args.resources), args.limit),
        Verb::Verify(args) => (Some(args.resources), None),
        Verb::Bench(args) => (Some(args.resources), None),
        Verb::List(_) | Verb::Show(_) | Verb::Diff(_) | Verb::Inspect(_) | Verb::Sources => {
            (None, None)
        }
    };
    Resources { args, limit_bytes_per_s }
}

fn inspect(args: &InspectArgs, world: &dyn World) -> Result<Task, CommandError> {
    let archive = place::local(args.archive.as_os_str(), world)?;
    Ok(match &args.salvage {
        None => Task::Inspect(archive),
        Some(new) => {
            Task::Salvage(SalvageTask { archive, new: place::local(new.as_os_str(), world)? })
        }
    })
}

fn backup(args: BackupArgs, world: &dyn World) -> Result<BackupRequest, CommandError> {
    let archive = archive_home(&args, world)?;
    let holding =
        Holding { latency_bound: args.max_latency.0, ..holding(&args.holding, &archive, world) };
    Ok(BackupRequest {
        sources: sources(&args.sources, world)?,
        parent: parent(&args.parent, &archive, world)?,
        archive,
        changes: args.changes,
        audit_share: args.audit / 100.0,
        compression: args.compression,
        chunk_len: args.chunk_size,
        attach: attachments(&args.attach, world)?,
        tags: tags(args.tag)?,
        dedup: match args.dedup {
            args::OnOff::On => Dedup::On,
            args::OnOff::Off => Dedup::Off,
        },
        on_read_error: match args.on_read_error {
            args::ReadErrors::Fail => OnReadError::Fail,
            args::ReadErrors::Record => OnReadError::Record,
        },
        holding,
        dry_run: args.dry_run,
    })
}

fn holding(args: &HoldingArgs, archive: &ArchiveHome, world: &dyn World) -> Holding {
    Holding {
        snapshot: match args.snapshot {
            args::AutoOff::Auto => SnapshotUse::Auto,
            args::AutoOff::Off => SnapshotUse::Off,
        },
        keep: match args.keep {
            args::KeepChoice::Auto => Keep::Auto,
            args::KeepChoice::Snapshot => Keep::Snapshot,
            args::KeepChoice::None => Keep::Nothing,
        },
        cow_bytes: args.cow_size,
        freeze: args.freeze.clone(),
        thaw: args.thaw.clone(),
        freeze_mounted: matches!(args.fs_freeze, args::AutoOff::Auto),
        freeze_guest: !args.running.no_freeze,
        agent: args.running.agent.clone(),
        libvirt_uri: args.running.libvirt_uri.clone(),
        fleece_dir: args.running.fleece.clone().unwrap_or_else(|| fleece_dir(archive)),
        fleece_bytes: args.running.fleece_limit,
        image_bitmaps: args.keep_bitmap,
        latency_bound: None,
        image_files: match args.allow_backing.is_empty() {
            true => Allowed::ImageFolder,
            false => Allowed::Folders(args.allow_backing.clone()),
        },
        state_dir: state::directory(world),
    }
}

/// Where room for a backup is: beside the archive.
fn fleece_dir(archive: &ArchiveHome) -> PathBuf {
    let folder = match archive {
        ArchiveHome::File(path) => path.parent(),
        ArchiveHome::Stdout => return PathBuf::from("/var/tmp"),
    };
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn archive_home(args: &BackupArgs, world: &dyn World) -> Result<ArchiveHome, CommandError> {
    if !args::is_stdout(&args.archive) {
        return place::local(&args.archive, world).map(ArchiveHome::File);
    }
    match world.stdout_is_terminal() && !args.dry_run {
        true => Err(CommandError::usage(
            "refusing to write an archive to a terminal",
            "redirect standard output to a file or a pipe, or name an archive",
        )),
        false => Ok(ArchiveHome::Stdout),
    }
}

fn parent(
    text: &str,
    archive: &ArchiveHome,
    world: &dyn World,
) -> Result<ParentChoice, CommandError> {
    match text {
        "auto" => Ok(ParentChoice::Auto),
        "none" => Ok(ParentChoice::None),
        _ if *archive == ArchiveHome::Stdout => Err(CommandError::usage(
            "an archive on standard output starts empty: it has no snapshot to compare with",
            "leave `--parent` out, or write to a file",
        )),
        _ => selector::parse(text, &world.zone()).map(ParentChoice::Snapshot),
    }
}

fn sources(words: &[OsString], world: &dyn World) -> Result<Vec<SourceRequest>, CommandError> {
    let sources = words
        .iter()
        .map(|word| {
            let (name, place) = place::source(word, world)?;
            Ok(SourceRequest { name, place })
        })
        .collect::<Result<Vec<_>, CommandError>>()?;
    refuse_duplicates("volumes", sources.iter().map(|source| source.name.as_str()))?;
    Ok(sources)
}

fn attachments(
    words: &[OsString],
    world: &dyn World,
) -> Result<Vec<(String, PathBuf)>, CommandError> {
    let files = words
        .iter()
        .map(|word| place::named(word, world)?.with_default_name())
        .collect::<Result<Vec<_>, CommandError>>()?;
    refuse_duplicates("attached files", files.iter().map(|(name, _)| name.as_str()))?;
    Ok(files)
}

fn tags(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CommandError> {
    let mut tags = BTreeMap::new();
    for (key, value) in pairs {
        if tags.contains_key(&key) {
            return Err(CommandError::usage(
                format!("the tag `{key}` is given twice"),
                "a key has one value: leave one of them out",
            ));
        }
        tags.insert(key, value);
    }
    Ok(tags)
}

fn restore(args: RestoreArgs, world: &dyn World) -> Result<RestoreRequest, CommandError> {
    let (archive, snapshot) = place::archive_and_snapshot(&args.archive, world)?;
    Ok(RestoreRequest {
        archive,
        snapshot: snapshot.unwrap_or(Selector::Latest(0)),
        targets: targets(&args.targets, args.volume, args.format, world)?,
        overwrite: args.overwrite,
        delta: match args.delta {
            args::DeltaChoice::Auto => Delta::Auto,
            args::DeltaChoice::On => Delta::On,
            args::DeltaChoice::Off => Delta::Off,
        },
        read_back: args.read_back,
        discard: matches!(args.discard, args::AutoOff::Auto),
        on_damage: match args.on_damage {
            args::Damage::Fail => OnDamage::Fail,
            args::Damage::Zero => OnDamage::Zero,
        },
        new_volumes: NewVolumes {
            thin_pool: args.thin_pool,
            zvol_block_len: args.volblocksize.map(u64::from),
            cluster_len: args.cluster_size,
        },
        dry_run: args.dry_run,
        state_dir: state::directory(world),
    })
}

fn targets(
    words: &[OsString],
    volume: Option<String>,
    format: Option<ImageFormat>,
    world: &dyn World,
) -> Result<Targets, CommandError> {
    let mut targets = words
        .iter()
        .map(|word| place::target(word, world))
        .map(|named| named.map(|(name, place)| TargetRequest { name, place }))
        .collect::<Result<Vec<_>, CommandError>>()?;
    if let Some(volume) = volume {
        match targets.as_mut_slice() {
            [TargetRequest { name: name @ None, .. }] => *name = Some(volume),
            _ => return Err(volume_conflict()),
        }
    }
    if let Some(folder) = folder(&targets, format, world)? {
        return Ok(Targets::Folder(folder));
    }
    if targets.len() > 1 {
        refuse_unnamed(&targets)?;
    }
    refuse_duplicates("targets", targets.iter().filter_map(|target| target.name.as_deref()))?;
    Ok(Targets::Each(targets))
}

/// The folder that is to take everything, if the target is one.
fn folder(
    targets: &[TargetRequest],
    format: Option<ImageFormat>,
    world: &dyn World,
) -> Result<Option<FolderRequest>, CommandError> {
    let path_of = |target: &TargetRequest| match &target.place {
        Place::Path(path) if names_folder(path, world) => Some(path.clone()),
        _ => None,
    };
    let found = targets.iter().find_map(|target| path_of(target).map(|path| (target, path)));
    match (found, format) {
        (Some(_), _) if targets.len() > 1 => Err(CommandError::usage(
            "a folder takes all that is restored: there can be no other target",
            "leave the others out, or name a file or device for each volume",
        )),
        (Some((target, path)), format) => Ok(Some(FolderRequest {
            // As it is shown: without the slash at its end.
            path: path.components().collect(),
            volume: target.name.clone(),
            format: format.map_or(Format::Raw, Format::from),
        })),
        (None, Some(_)) => Err(CommandError::usage(
            "`--format` says what volumes become in a folder",
            "write DIR/ as the target, or NAME.qcow2 for one new image",
        )),
        (None, None) => Ok(None),
    }
}

/// Whether a target is a folder: it is there as one, or ends as only one can.
fn names_folder(path: &Path, world: &dyn World) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/") || world.is_directory(path)
}

fn volume_conflict() -> CommandError {
    CommandError::usage(
        "`--volume` names the volume of one target that does not say NAME= itself",
        "write NAME=TARGET for each target and leave `--volume` out",
    )
}

fn refuse_unnamed(targets: &[TargetRequest]) -> Result<(), CommandError> {
    match targets.iter().find(|target| target.name.is_none()) {
        None => Ok(()),
        Some(target) => Err(CommandError::usage(
            format!("which volume goes to {}? there are several targets", target.place),
            "write NAME=TARGET for each of them",
        )),
    }
}

/// Names address things inside a snapshot, so each is used once.
fn refuse_duplicates<'a>(
    what: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), CommandError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(CommandError::usage(
                format!("two {what} are called `{name}`"),
                "give them different names: NAME=PATH",
            ));
        }
    }
    Ok(())
}

fn verify(args: &VerifyArgs, world: &dyn World) -> Result<VerifyRequest, CommandError> {
    let (archive, snapshot) = place::archive_and_snapshot(&args.archive, world)?;
    let of_the_whole = [("--resume", args.resume), ("--sample", args.sample.is_some())];
    if let (Some(_), Some((option, _))) = (&snapshot, of_the_whole.iter().find(|(_, set)| *set)) {
        return Err(CommandError::usage(
            format!("`{option}` is for whole archives; what one snapshot needs is read as a whole"),
            format!("leave out `{option}`, or the snapshot"),
        ));
    }
    let resume = match args.resume {
        true => Some(state::verify_note(&archive, args.stored, world)?),
        false => None,
    };
    Ok(VerifyRequest {
        archive,
        snapshot,
        stored: args.stored,
        sample_percent: args.sample,
        resume,
    })
}

fn show(args: args::ShowArgs, json: bool, world: &dyn World) -> Result<ShowTask, CommandError> {
    if json && args.attached.is_some() {
        return Err(CommandError::usage(
            "`--attached` writes a file's bytes to standard output, `--json` an object",
            "leave one of them out",
        ));
    }
    let (archive, snapshot) = place::archive_and_snapshot(&args.archive, world)?;
    let snapshot = snapshot.unwrap_or(Selector::Latest(0));
    Ok(ShowTask { archive, snapshot, attached: args.attached })
}

fn diff(args: args::DiffArgs, world: &dyn World) -> Result<DiffTask, CommandError> {
    let zone = world.zone();
    let old = selector::parse(&args.old, &zone)?;
    let new = selector::parse(&args.new, &zone)?;
    Ok(DiffTask {
        archive: place::local(args.archive.as_os_str(), world)?,
        old: (args.old, old),
        new: (args.new, new),
        volume: args.volume,
    })
}

/// A world for tests: a handful of names that exist, UTC.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use jiff::tz::TimeZone;
    use std::ffi::OsStr;

    #[derive(Default)]
    pub struct Fake {
        pub files: Vec<&'static str>,
        pub folders: Vec<&'static str>,
        pub env: Vec<(&'static str, &'static str)>,
        pub root: bool,
        pub terminal: bool,
    }

    impl World for Fake {
        fn exists(&self, path: &Path) -> bool {
            self.files.iter().chain(&self.folders).any(|file| Path::new(file) == path)
        }
        fn is_directory(&self, path: &Path) -> bool {
            let is_parent =
                |file: &&str| Path::new(file) != path && Path::new(file).starts_with(path);
            self.folders.iter().any(|folder| Path::new(folder) == path)
                || self.files.iter().any(is_parent)
        }
        fn canonical(&self, path: &Path) -> PathBuf {
            Path::new("/here").join(path)
        }
        fn env(&self, name: &str) -> Option<OsString> {
            self.env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsStr::new(value).into())
        }
        fn is_root(&self) -> bool {
            self.root
        }
        fn stdout_is_terminal(&self) -> bool {
            self.terminal
        }
        fn zone(&self) -> TimeZone {
            TimeZone::UTC
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    fn task(line: &str, world: &Fake) -> Result<Task, CommandError> {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        resolve(args::parse(&argv).unwrap(), world).map(|job| job.task)
    }

    fn home() -> Fake {
        Fake { env: vec![("HOME", "/home/u")], ..Fake::default() }
    }

    fn refused(line: &str, world: &Fake) -> String {
        let error = task(line, world).unwrap_err();
        assert_eq!(error.exit.code(), 2, "{line}");
        assert!(error.hint.is_some(), "{line}");
        error.headline.clone()
    }

    #[test]
    fn sources_are_named_after_their_last_part() {
        let Task::Backup(request) =
            task("voltar backup /dev/vg/root data=/dev/vg/d x.vlt --audit 5", &home()).unwrap()
        else {
            panic!()
        };
        let names: Vec<_> = request.sources.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["root", "data"]);
        assert_eq!(
            request.sources[1].place,
            voltar_engine::options::Place::Path("/dev/vg/d".into())
        );
        assert_eq!(request.archive, ArchiveHome::File("x.vlt".into()));
        assert_eq!(request.audit_share, 0.05);
    }

    #[test]
    fn duplicate_names_are_refused() {
        let world = home();
        assert_eq!(
            refused("voltar backup a/disk b/disk x", &world),
            "two volumes are called `disk`"
        );
        assert_eq!(
            refused("voltar backup a x --attach p/c --attach q/c", &world),
            "two attached files are called `c`"
        );
        assert_eq!(refused("voltar restore x d=a d=b", &world), "two targets are called `d`");
        assert_eq!(
            refused("voltar backup a x --tag k=1 --tag k=2", &world),
            "the tag `k` is given twice"
        );
    }

    #[test]
    fn an_archive_never_goes_to_a_terminal() {
        let world = Fake { terminal: true, ..home() };
        assert_eq!(
            refused("voltar backup a -", &world),
            "refusing to write an archive to a terminal"
        );
        assert!(task("voltar backup a - --dry-run", &world).is_ok());
        assert!(task("voltar backup a -", &home()).is_ok());
        assert!(refused("voltar backup a - --parent abc", &home()).contains("starts empty"));
    }

    #[test]
    fn several_targets_need_names() {
        let world = home();
        assert!(refused("voltar restore x a=p q", &world).starts_with("which volume goes to q?"));
        assert!(refused("voltar restore x a=p --volume a", &world).starts_with("`--volume`"));
        assert!(refused("voltar restore x p q --volume a", &world).starts_with("`--volume`"));
        let Task::Restore(request) =
            task("voltar restore x@latest~2 p --volume a", &world).unwrap()
        else {
            panic!()
        };
        let Targets::Each(targets) = &request.targets else { panic!() };
        assert_eq!(targets[0].name.as_deref(), Some("a"));
        assert_eq!(request.snapshot, Selector::Latest(2));
        assert_eq!(request.state_dir.as_deref(), Some(Path::new("/home/u/.local/state/voltar")));
        assert!(!request.discard);
    }

    #[test]
    fn a_folder_takes_everything_or_one_volume() {
        let world = Fake { folders: vec!["there"], ..home() };
        let folder = |line: &str| match task(line, &world).unwrap() {
            Task::Restore(RestoreRequest { targets: Targets::Folder(folder), .. }) => {
                (folder.path.display().to_string(), folder.volume, folder.format)
            }
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(folder("voltar restore x new/"), ("new".into(), None, Format::Raw));
        assert_eq!(folder("voltar restore x there"), ("there".into(), None, Format::Raw));
        let one = ("new".into(), Some("a".into()), Format::Qcow2);
        assert_eq!(folder("voltar restore x new/ --volume a --format qcow2"), one);
        assert_eq!(folder("voltar restore x a=new/ --format qcow2"), one);
        assert!(refused("voltar restore x a=new/ b=c", &world).starts_with("a folder takes all"));
        assert!(refused("voltar restore x new --format raw", &world).starts_with("`--format`"));
    }

    #[test]
    fn verify_without_snapshot_means_the_whole_archive() {
        let Task::Verify(whole) = task("voltar verify x", &home()).unwrap() else { panic!() };
        assert_eq!((whole.snapshot, whole.resume), (None, None));
        let Task::Verify(one) = task("voltar verify x@latest", &home()).unwrap() else { panic!() };
        assert_eq!(one.snapshot, Some(Selector::Latest(0)));
        let Task::Verify(whole) = task("voltar verify x --resume", &home()).unwrap() else {
            panic!()
        };
        assert!(whole.resume.unwrap().starts_with("/home/u/.local/state/voltar"));
    }

    #[test]
    fn what_goes_by_the_log_is_for_whole_archives() {
        assert!(refused("voltar verify x@latest --resume", &home()).starts_with("`--resume`"));
        assert!(refused("voltar verify x@latest --sample 5", &home()).starts_with("`--sample`"));
    }

    #[test]
    fn who_has_no_home_restores_without_notes() {
        let Task::Restore(request) = task("voltar restore x p", &Fake::default()).unwrap() else {
            panic!()
        };
        assert_eq!(request.state_dir, None);
    }

    #[test]
    fn attached_bytes_and_json_exclude_each_other() {
        assert!(refused("voltar show x --attached a --json", &home()).contains("--attached"));
    }
}
