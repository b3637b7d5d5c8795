//! An image and all the files that it stands on, opened, identified and checked, and the nodes by
//! which QEMU is told to open them, and nothing else.

use std::path::Path;

use serde_json::{Value, json};

use super::bytes::read_up_to;
use super::files::{Allowed, Folders, Identity, ImageFile};
use super::format::{Format, MAGIC_LEN};
use super::qcow2::error::ImageError;
use super::qcow2::header::{Backing, Header};
use super::vmdk::{self, VmdkError};
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
    },
    /// A VHDX image. QEMU refuses those that have a parent.
    Vhdx,
    /// A VDI image. QEMU refuses those that have a parent.
    Vdi,
}

/// How QEMU is told which file to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileNames {
    /// By its path without links, if that is text. Another file may have been put there since it was
    /// checked.
    Paths,
    /// By this process's descriptor (`/proc/PID/fd/N`): the very file that was checked. For a
    /// program of the same user that sees the same processes; this one and the chain must live until
    /// it has opened them.
    Descriptors,
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
    /// named, so that nothing is guessed and nothing is taken from a header.
    ///
    /// qemu-nbd (7.2 and 10) takes it as a file's name, behind `json:` and without `--image-opts`,
    /// which takes `key=value` alone.
    pub fn blockdev_json(&self, names: FileNames) -> String {
        let nodes = self.layers.iter().rev();
        let top = nodes.fold(Value::Null, |backing, layer| layer.node(backing, names));
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
            Content::Vmdk { extents } => extents,
            Content::Raw | Content::Vhdx | Content::Vdi => &[],
        }
    }

    fn identities(&self) -> impl Iterator<Item = Identity> {
        std::iter::once(&self.file).chain(self.data_files()).map(|file| file.identity)
    }

    fn node(&self, backing: Value, names: FileNames) -> Value {
        let mut node = json!({
            "driver": self.format().name(),
            "read-only": true,
            "auto-read-only": false,
            "discard": "ignore",
            "file": file_node(&self.file, names),
        });
        // The other formats know no backing file.
        if matches!(self.format(), Format::Qcow2 | Format::Vmdk) {
            node["backing"] = backing;
        }
        match &self.content {
            Content::Qcow2 { data_file: Some(data_file), .. } => {
                node["data-file"] = file_node(data_file, names);
            }
            Content::Vmdk { extents } if !extents.is_empty() => {
                node["extents"] = extents.iter().map(|extent| file_node(extent, names)).collect();
            }
            _ => {}
        }
        node
    }
}

fn file_node(file: &ImageFile, names: FileNames) -> Value {
    // A path that is not text cannot stand in JSON.
    let path = match (names, file.real_path().to_str()) {
        (FileNames::Paths, Some(path)) => path.to_owned(),
        _ => file.path_by_descriptor(),
    };
    json!({
        "driver": if file.is_block_device() { "host_device" } else { "file" },
        "filename": path,
        "read-only": true,
        "auto-read-only": false,
        "discard": "ignore",
    })
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
        let refused = |error| of_vmdk(image, error);
        let mut extents = Vec::new();
        for extent in vmdk::extents(image.file()).map_err(refused)? {
            let file = folders.open_named(image, "extent", &extent.name)?;
            if extent.is_sparse {
                vmdk::check_sparse(file.file()).map_err(|error| of_vmdk(&file, error))?;
            }
            extents.push(file);
        }
        check_own(image, &extents)?;
        Ok(Content::Vmdk { extents })
    }
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
        unusable(message, image.label()).because(unknown).hint(format!(
            "if it is none of {format:?} but of one that voltar reads, {}",
            rebase("FORMAT")
        ))
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
