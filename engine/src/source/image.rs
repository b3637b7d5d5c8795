//! Images in files: read through `qemu-nbd`, which opens the files that were checked here and no
//! others. What changed in a qcow2 image is told by a dirty bitmap in it, which QEMU goes on with whenever
//! the machine runs.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::backing::Backing;
use super::changed::ChangeList;
use super::dirty_bitmap::{Sizes, told_by};
use super::hold::{Held, Hold, Wanted};
use super::qemu::{BITMAP, GRANULARITY, KIND};
use super::{Change, ChangeSource, ChangedExtent, Degraded, Proof, View};
use crate::device::file::FileIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::image::bitmaps;
use crate::image::chain::{Chain, Layer};
use crate::image::format::Format;
use crate::image::qcow2::header::Header;
use crate::image::serve::{Mode, Service};
use crate::nbd::NbdDevice;
use crate::options::{Context, Holding, Keep};
use crate::qemu::{self, Bitmaps, Outcome};
use crate::words::with_causes;

/// Opens the image that `wish` is, of this format. `series` tells backups into one archive from those into
/// others.
///
/// # Errors
/// Says what is in the way.
pub fn open(
    wish: Wanted,
    (format, path): (Format, &Path),
    holding: &Holding,
    series: &[u8],
    context: &Context,
) -> Result<(usize, Held)> {
    let chain = Chain::open(path, format, &holding.image_files)?;
    let mut kept = Kept::of(&chain, holding, series);
    let begun = kept.begin(&chain);
    // The header that tells where bitmaps lie is another one now.
    let opened = Chain::open(path, format, &holding.image_files)
        .and_then(|chain| open_chain(wish, Arc::new(chain), begun, &kept, context));
    opened.inspect_err(|_| {
        // Nothing better can be done: the failure that led here is reported.
        let _ = kept.end(&chain, Outcome::Nothing);
    })
}

fn open_chain(
    wish: Wanted,
    chain: Arc<Chain>,
    begun: Result<(), Degraded>,
    kept: &Kept,
    context: &Context,
) -> Result<(usize, Held)> {
    let top = chain.top();
    let label = format!("{}:{}", top.format(), top.file.path.display());
    let words = [OsString::from(format!("json:{}", chain.blockdev_json()))];
    let mut service = Service::start(&words, Mode::Read, &label, &context.cancel)?;
    let device = Arc::new(service.connect(context.io, &context.cancel)?);
    let size = device.export().size;
    if size == 0 {
        return Err(Error::new(ErrorKind::SourceUnusable, "the image is empty").on(label));
    }
    let identities = chain.files().map(|file| FileIdentity::of(file.file()));
    let identities = identities
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| Error::io("cannot look at the image", &*label, error))?;
    let source = kept.has_any.then(|| {
        let (chain, device) = (Arc::clone(&chain), Arc::clone(&device));
        let (backing, asked) = (backing_of(&chain), Arc::clone(&kept.asked));
        let proof = kept.proof(&backing);
        Arc::new(ImageBitmap { chain, device, size, backing, proof, asked })
            as Arc<dyn ChangeSource>
    });
    let view = View {
        name: wish.name,
        description: label,
        device: Arc::clone(&device) as Arc<_>,
        size,
        change_source: source,
        degraded: begun.err().map(|Degraded(why)| format!("{KIND}: {why}")),
    };
    drop(device);
    let hold = ImageHold { service: Some(service), chain, kept: kept.clone() };
    Ok((wish.number, Held { view, identities, hold: Some(Box::new(hold)) }))
}

/// The bitmaps of this series of backups in an image.
#[derive(Clone, Debug)]
struct Kept {
    series: Bitmaps,
    /// Whether there are any, or may be, or one was begun.
    has_any: bool,
    /// Whether none is to be left.
    keeps_none: bool,
    /// The one that tells what changes from now on.
    new: Option<String>,
    /// The one that told what had changed.
    asked: Arc<Mutex<Option<String>>>,
}

impl Kept {
    /// Whether there is to be a bitmap: where the user wants one, or has had one.
    fn of(chain: &Chain, holding: &Holding, series: &[u8]) -> Kept {
        let mut series = Bitmaps::of(series, false);
        let names = names_of(chain.top());
        let is_readable = names.is_some();
        let has_ours = names.into_iter().flatten().any(|name| name.starts_with(&series.prefix));
        let keeps_none = holding.keep == Keep::Nothing;
        series.wanted = !keeps_none && (holding.image_bitmaps || has_ours);
        let has_any = has_ours || !is_readable;
        Kept { series, has_any, keeps_none, new: None, asked: Arc::default() }
    }

    /// Begins a bitmap before anything is read.
    fn begin(&mut self, chain: &Chain) -> Result<(), Degraded> {
        if !self.series.wanted {
            return Ok(());
        }
        check_keeps_bitmaps(chain.top())?;
        let name = self.series.draw();
        let Some(size) = chain.top().qcow2().map(|header| header.size) else { return Ok(()) };
        bitmaps::begin(&chain.top().file, &name, qemu::GRANULARITY, size).map_err(|error| {
            Degraded(format!("no bitmap can be begun in it: {}", with_causes(&error)))
        })?;
        self.has_any = true;
        self.new = Some(name);
        Ok(())
    }

    fn proof(&self, backing: &Backing) -> Proof {
        let Some(new) = &self.new else { return Proof::new() };
        let granularity = qemu::GRANULARITY.to_string();
        let mut proof: Proof =
            [(BITMAP.to_owned(), new.clone()), (GRANULARITY.to_owned(), granularity)].into();
        backing.prove(&mut proof);
        proof
    }

    /// Removes the bitmaps that no next backup needs. The image is not in use.
    fn end(&self, chain: &Chain, outcome: Outcome) -> Result<()> {
        let image = &chain.top().file;
        let new = self.new.as_deref();
        let is_of = |name: &str, other: &str| name == other || name == qemu::end_of(other);
        match (outcome, new) {
            (Outcome::Nothing, None) => return Ok(()),
            (Outcome::Nothing, Some(new)) => {
                return bitmaps::remove(image, new).and(bitmaps::remove(image, &qemu::end_of(new)));
            }
            // What is there may still serve.
            (Outcome::Base, None) if !self.keeps_none => return Ok(()),
            (Outcome::Base, _) => {}
        }
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let was_asked = |name: &str| asked.as_deref().is_some_and(|asked| is_of(name, asked));
        let is_old = |name: &&String| {
            !new.is_some_and(|new| is_of(name, new))
                && (name.starts_with(&self.series.prefix) || was_asked(name))
                && qemu::is_named(name)
        };
        let names = names_of(chain.top()).unwrap_or_default();
        let removed = names.iter().filter(is_old).map(|name| bitmaps::remove(image, name));
        removed.fold(Ok(()), Result::and)
    }
}

/// The names of an image's bitmaps; `None` if they cannot be read.
fn names_of(image: &Layer) -> Option<Vec<String>> {
    let Some(header) = image.qcow2() else { return Some(Vec::new()) };
    let bitmaps = header.bitmaps(image.file.file()).ok()?;
    Some(bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

/// The files below an image.
fn backing_of(chain: &Chain) -> Backing {
    let lower = chain.layers().get(1..).unwrap_or_default();
    Backing::of(lower.iter().flat_map(Layer::files).map(|file| file.file().metadata()))
}

fn check_keeps_bitmaps(image: &Layer) -> Result<(), Degraded> {
    let why = match image.qcow2() {
        None => "only qcow2 images can keep a bitmap",
        Some(header) if header.version < 3 => "images of version 2 keep no bitmap",
        // Nobody would notice who writes to that file.
        Some(header) if header.has_data_file() => "its data is in a file of its own",
        Some(_) => return Ok(()),
    };
    Err(Degraded(why.into()))
}

/// What the bitmaps in an image tell.
struct ImageBitmap {
    chain: Arc<Chain>,
    device: Arc<NbdDevice>,
    size: u64,
    backing: Backing,
    proof: Proof,
    asked: Arc<Mutex<Option<String>>>,
}

impl ImageBitmap {
    /// The ranges that the bitmap `name` calls dirty.
    fn dirty(
        &self,
        header: &Header,
        name: &str,
        granularity: &str,
    ) -> Result<Vec<ChangedExtent>, Degraded> {
        let file = self.chain.top().file.file();
        let unreadable = |error| Degraded(format!("its bitmaps tell nothing: {error}"));
        let bitmaps = header.bitmaps(file).map_err(unreadable)?;
        let bitmap = bitmaps.iter().find(|bitmap| bitmap.name == name).ok_or_else(|| {
            Degraded("the bitmap that was begun with the last backup is gone".into())
        })?;
        if !bitmap.auto {
            return Err(Degraded("somebody disabled the bitmap".into()));
        }
        if bitmap.granularity().to_string() != granularity {
            return Err(Degraded(
                "the bitmap is another one: its granularity is not what it was".into(),
            ));
        }
        let mut has_end = false;
        let end = bitmaps.iter().find(|bitmap| bitmap.name == qemu::end_of(name));
        let visited = end.map(|end| end.visit_dirty(header, file, |_| has_end = true));
        visited.transpose().map_err(unreadable)?;
        if !has_end {
            return Err(Degraded(
                "the image was made shorter since, and the bitmap does not tell what was behind"
                    .into(),
            ));
        }
        let mut list = ChangeList::new(Change::Unchanged);
        let mut outcome = Ok(());
        let visited = bitmap.visit_dirty(header, file, |range| {
            if outcome.is_ok() {
                outcome = list.push(range, Change::Changed);
            }
        });
        visited.map_err(unreadable)?;
        outcome.map(|()| list.finish(self.size))
    }
}

impl ChangeSource for ImageBitmap {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        self.proof.clone()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let (Some(name), Some(granularity)) = (base.get(BITMAP), base.get(GRANULARITY)) else {
            return Err(Degraded("the last backup left no bitmap".into()));
        };
        // One of the running machine's may be there all the same.
        check_keeps_bitmaps(self.chain.top())?;
        self.backing.check(base)?;
        // Not the one from before QEMU locked the image: where bitmaps lie may be another place since.
        let header = Header::read(self.chain.top().file.file())
            .map_err(|error| Degraded(format!("its header cannot be read: {error}")))?;
        if header.size != self.size {
            return Err(Degraded("its header and its server tell two sizes".into()));
        }
        let dirty = self.dirty(&header, name, granularity)?;
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.clone());
        let sizes = Sizes { base: base_size, now: self.size, never_less: true };
        told_by(&dirty, &self.device, sizes).map_err(Degraded)
    }
}

/// A served image: its server, and the files that it reads.
struct ImageHold {
    service: Option<Service>,
    chain: Arc<Chain>,
    kept: Kept,
}

impl ImageHold {
    fn end(&mut self, outcome: Outcome) -> Result<()> {
        let Some(service) = self.service.take() else { return Ok(()) };
        service.stop()?;
        self.kept.end(&self.chain, outcome)
    }
}

impl Hold for ImageHold {
    fn is_live(&self) -> bool {
        false
    }

    fn keep(&mut self) -> Result<()> {
        self.end(Outcome::Base)
    }

    fn release(&mut self) -> Result<()> {
        self.end(Outcome::Nothing)
    }
}
