//! Regular files on btrfs and XFS, held still by a reflink copy.
//!
//! The copy shares all extents with the file and is made in one step, in which nobody can write to the
//! file; it is what is read. Once the backup is durable it stays as the base of the next one, beside the
//! file as `.NAME.voltar-TIME`: where the next copy still shares an extent with it, nothing changed. One
//! base is kept for each file.
//!
//! A file that cannot be copied is read as it is, and the report says why.

pub mod changes;
pub mod copy;
