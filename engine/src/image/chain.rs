//! An image and all the files that it stands on, opened, identified and checked, and the nodes by
//! which QEMU is told to open them, and nothing else.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::bytes::read_up_to;
use super::files::{Allowed, Folders, Identity, ImageFile};
use super::format::{Format, MAGIC_LEN};
use super::qcow2::error::ImageError;
use super::qcow2::header::{Backing, Header};
use super::vmdk::{self, Extent, ExtentKind, VmdkError};
use crate::error::{Error, ErrorKind, Result};

/// Most layers: the image and those that it is made upon.
const LAYERS_MAX: usize = 16;

/// An image and those that it is made upon; the image is the first.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
}

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// The image.
    pub file: ImageFile,
    /// What it is.
    pub content: Content,
}

/// What an image is, and the files that hold its data if it does not do so itself.
#[derive(Debug)]
pub enum Content {
    /// The disk's bytes.
    Raw,
    /// A qcow2 image.
    Qcow2 {
        /// Its header.
        header: Box<Header>,
        /// The file with its data.
        data_file: Option<ImageFile>,
    },
    /// A VMDK image.
    Vmdk {
        /// The files with its data, in their order; empty if it is a sparse one.
        extents: Vec<ImageFile>,
        /// The text that names them by descriptor, if there are any: in memory, under no name.
        descriptor: Option<File>,
    },
    /// A VHDX image. QEMU refuses those that have a parent.
    Vhdx,
    /// A VDI image. QEMU refuses those that have a parent.
    Vdi,
}

impl Chain {
    /// Opens the image at `path`, which is of `format`, and all that it names.
    ///
    /// # Errors
    /// Says which image of the chain cannot be used, why, and what to do.
    pub fn open(path: &Path, format: Format, allowed: &Allowed) -> Result<Chain> {
        let image = ImageFile::open(path)?;
        let folders = Folders::of(&image, allowed)?;
        let mut chain = Chain { layers: Vec::new() };
        let mut next = Some((image, format));
        while let Some((file, format)) = next {
            let content = Content::read(&file, format, &folders)?;
            chain.push(Layer { file, content })?;
            let layer = chain.bottom();
            next = match layer.backing() {
                None => None,
                Some(backing) => Some(open_backing(&layer.file, backing, &folders)?),
            };
        }
        Ok(chain)
    }

    /// The image, what it is made upon, and so on.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The image itself.
    pub fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// All files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &ImageFile> {
        self.layers.iter().flat_map(Layer::files)
    }

    fn bottom(&self) -> &Layer {
        &self.layers[self.layers.len() - 1]
    }

    fn push(&mut self, layer: Layer) -> Result<()> {
        let label = layer.file.label();
        let known: Vec<Identity> = self.layers.iter().flat_map(Layer::identities).collect();
        if layer.identities().any(|identity| known.contains(&identity)) {
            let message = "the chain of images leads back into itself";
            return Err(unusable(message, &label)
                .meaning("the disk's content is not known")
                .hint("correct the name of its backing file or data file with qemu-img"));
        }
        if self.layers.len() == LAYERS_MAX {
            let message = format!("the chain of images has more than {LAYERS_MAX} layers");
            return Err(unusable(message, &label).meaning("nothing was backed up").hint(
                "merge layers with qemu-img commit, or make one image with qemu-img convert",
            ));
        }
        self.layers.push(layer);
        Ok(())
    }

    /// The nodes to open, as QEMU's `blockdev-add` takes them: read-only, every file and format
    /// named, so that nothing is guessed and nothing is taken from a header. Files are named by this
    /// process's descriptors (`/proc/PID/fd/N`): what was checked is what is opened, by a program of the
    /// same user that sees the same processes, for as long as this chain lives.
    ///
    /// qemu-nbd (7.2) takes it as a file's name, behind `json:` and without `--image-opts`,
    /// which takes `key=value` alone.
    pub fn blockdev_json(&self) -> String {
        let nodes = self.layers.iter().rev();
        let top = nodes.fold(Value::Null, |backing, layer| layer.node(backing));
        top.to_string()
    }
}

impl Layer {
    /// What it is.
    pub fn format(&self) -> Format {
        match self.content {
            Content::Raw => Format::Raw,
            Content::Qcow2 { .. } => Format::Qcow2,
            Content::Vmdk { .. } => Format::Vmdk,
            Content::Vhdx => Format::Vhdx,
            Content::Vdi => Format::Vdi,
        }
    }

    /// The header, if it is a qcow2 image.
    pub fn qcow2(&self) -> Option<&Header> {
        match &self.content {
            Content::Qcow2 { header, .. } => Some(header),
            _ => None,
        }
    }

    fn backing(&self) -> Option<&Backing> {
        self.qcow2()?.backing.as_ref()
    }

    /// The files that hold its data, if it does not do so itself.
    fn data_files(&self) -> &[ImageFile] {
        match &self.content {
            Content::Qcow2 { data_file, .. } => data_file.as_slice(),
            Content::Vmdk { extents, .. } => extents,
            Content::Raw | Content::Vhdx | Content::Vdi => &[],
        }
    }

    /// Its file, and those that hold its data.
    pub fn files(&self) -> impl Iterator<Item = &ImageFile> {
        std::iter::once(&self.file).chain(self.data_files())
    }

    fn identities(&self) -> impl Iterator<Item = Identity> {
        self.files().map(|file| file.identity)
    }

    fn node(&self, backing: Value) -> Value {
        let mut node = read_only(self.format().name());
        node["file"] = match &self.content {
            Content::Vmdk { descriptor: Some(text), .. } => with_file(read_only("file"), text),
            _ => data_node(&self.file),
        };
        // The other formats know no backing file.
        if matches!(self.format(), Format::Qcow2 | Format::Vmdk) {
            node["backing"] = backing;
        }
        match &self.content {
            Content::Qcow2 { data_file: Some(data_file), .. } => {
                node["data-file"] = data_node(data_file);
            }
            Content::Vmdk { extents, .. } if !extents.is_empty() => {
                // Their names QEMU takes from the text alone, and refuses them here.
                let unnamed = |extent: &ImageFile| read_only(driver_of(extent));
                node["extents"] = extents.iter().map(unnamed).collect();
            }
            _ => {}
        }
        node
    }
}

/// The node of a file that was checked.
fn data_node(file: &ImageFile) -> Value {
    with_file(read_only(driver_of(file)), file.file())
}

fn driver_of(file: &ImageFile) -> &'static str {
    if file.is_block_device() { "host_device" } else { "file" }
}

fn read_only(driver: &str) -> Value {
    json!({ "driver": driver, "read-only": true, "auto-read-only": false, "discard": "ignore" })
}

fn with_file(mut node: Value, file: &File) -> Value {
    node["filename"] = by_descriptor(file).into();
    node
}

/// A name by which another program opens this very file.
pub(super) fn by_descriptor(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

impl Content {
    fn read(image: &ImageFile, format: Format, folders: &Folders) -> Result<Content> {
        match format {
            Format::Raw => Ok(Content::Raw),
            Format::Qcow2 => Content::qcow2(image, folders),
            Format::Vmdk => Content::vmdk(image, folders),
            Format::Vhdx => check_magic(image, format).map(|()| Content::Vhdx),
            Format::Vdi => check_magic(image, format).map(|()| Content::Vdi),
        }
    }

    fn qcow2(image: &ImageFile, folders: &Folders) -> Result<Content> {
        let header = Header::read(image.file()).map_err(|error| of_qcow2(image, error))?;
        let data_file = match (&header.data_file, header.has_data_file()) {
            (_, false) => None,
            (Some(name), true) => Some(folders.open_named(image, "data file", name)?),
            (None, true) => return Err(nameless_data_file(image)),
        };
        check_own(image, data_file.as_slice())?;
        Ok(Content::Qcow2 { header: Box::new(header), data_file })
    }

    fn vmdk(image: &ImageFile, folders: &Folders) -> Result<Content> {
        let named = vmdk::extents(image.file()).map_err(|error| of_vmdk(image, error))?;
        let mut extents = Vec::new();
        for extent in &named {
            let file = folders.open_named(image, "extent", &extent.name)?;
            if extent.kind == ExtentKind::Sparse {
                vmdk::check_sparse(file.file()).map_err(|error| of_vmdk(&file, error))?;
            }
            extents.push(file);
        }
        check_own(image, &extents)?;
        let descriptor = match extents.is_empty() {
            true => None,
            false => Some(descriptor(image, &named, &extents)?),
        };
        Ok(Content::Vmdk { extents, descriptor })
    }
}

/// A descriptor that names the extents by our descriptors of their files.
fn descriptor(image: &ImageFile, named: &[Extent], files: &[ImageFile]) -> Result<File> {
    let names = files.iter().map(|file| by_descriptor(file.file()));
    let text = vmdk::descriptor_of(named.iter().zip(names));
    let write = || {
        let mut file = File::from(memfd_create("voltar-vmdk", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        Ok(file)
    };
    write().map_err(|error| Error::io("cannot write down the extents of", image.label(), error))
}

/// Checks that an image does not name itself.
fn check_own(image: &ImageFile, named: &[ImageFile]) -> Result<()> {
    match named.iter().any(|file| file.identity == image.identity) {
        true => Err(unusable("the image names itself as the file with its data", image.label())
            .meaning("the disk's content is not known")
            .hint("correct the name with qemu-img amend, or in the descriptor")),
        false => Ok(()),
    }
}

fn check_magic(image: &ImageFile, format: Format) -> Result<()> {
    let first = read_up_to(image.file(), 0, MAGIC_LEN)
        .map_err(|error| Error::io("cannot read the image", image.label(), error))?;
    match Format::of_header(&first) == Some(format) {
        true => Ok(()),
        false => Err(no_such_format(image, format)),
    }
}

fn open_backing(
    image: &ImageFile,
    backing: &Backing,
    folders: &Folders,
) -> Result<(ImageFile, Format)> {
    let name = &backing.name;
    let rebase = |format: &str| {
        let (name, image) = (in_shell(name), in_shell(&image.label()));
        format!("write it: qemu-img rebase -u -F {format} -b {name} {image}")
    };
    let Some(format) = &backing.format else {
        let message =
            format!("the image does not say of which format its backing file {name:?} is");
        return Err(unusable(message, image.label())
            .meaning("QEMU would guess, and whoever wrote to a raw disk can make it guess wrong")
            .hint(rebase("FORMAT")));
    };
    let format = format.parse::<Format>().map_err(|unknown| {
        let message = format!("the backing file {name:?} of the image has an unusable format");
        unusable(message, image.label())
            .because(unknown)
            .meaning("nothing was backed up")
            .hint(format!("if it is of a format that voltar reads after all, {}", rebase("FORMAT")))
    })?;
    Ok((folders.open_named(image, "backing file", name)?, format))
}

/// A word as a shell takes it.
fn in_shell(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,=".contains(&byte);
    match word.bytes().all(is_plain) && !word.starts_with('-') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn unusable(message: impl Into<String>, label: impl Into<String>) -> Error {
    Error::new(ErrorKind::SourceUnusable, message).on(label)
}

fn nameless_data_file(image: &ImageFile) -> Error {
    unusable("the image's data is in another file, whose name it does not say", image.label())
        .meaning("the disk's content is not known")
        .hint("write the name: qemu-img amend -f qcow2 -o data_file=NAME IMAGE")
}

fn no_such_format(image: &ImageFile, format: Format) -> Error {
    unusable(format!("the image is not of the format {format}"), image.label())
        .meaning("nothing was read")
        .hint("name its format; qemu-img info tells, of an image that you trust")
}

fn of_qcow2(image: &ImageFile, error: ImageError) -> Error {
    let hint = match &error {
        ImageError::Magic => return no_such_format(image, Format::Qcow2).because(error),
        ImageError::Unreadable { .. } => "look at the disk that it lies on",
        ImageError::Encrypted { .. } => {
            "export it with qemu-nbd yourself, with its secret, and name the export"
        }
        ImageError::Version(_) | ImageError::Feature { .. } => {
            "convert it with the QEMU that wrote it (qemu-img convert), or export it with qemu-nbd"
        }
        _ => "look at it with qemu-img check; do not use it if you do not know who wrote it",
    };
    let error = unusable("the qcow2 image cannot be used", image.label()).because(error);
    error.meaning("nothing was backed up").hint(hint)
}

fn of_vmdk(image: &ImageFile, error: VmdkError) -> Error {
    let hint = match &error {
        VmdkError::Magic => return no_such_format(image, Format::Vmdk).because(error),
        VmdkError::Unreadable(_) => "look at the disk that it lies on",
        VmdkError::Parent => {
            "remove the snapshots where the VM runs, or make one image with qemu-img convert"
        }
        _ => "make one image of it with qemu-img convert, if you know who wrote it",
    };
    let error = unusable("the VMDK image cannot be used", image.label()).because(error);
    error.meaning("nothing was backed up").hint(hint)
}
