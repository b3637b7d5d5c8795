//! What a kernel says of two files' extents, and what is made of it: no panic, no endless walk, and
//! nothing is unchanged that does not lie at the same place.
//!
//! An input is a kind (even: FIEMAP, odd: items of btrfs), the lengths of base and file, and the
//! answers of both, each with its file (even: the base) and its length.

use std::collections::VecDeque;

use voltar_engine::source::changed::ChangeList;
use voltar_engine::source::extent_map::{Extent, Page, Pages, Place, Walk, diff};
use voltar_engine::source::{Change, Degraded, btrfs_items, check_coverage, fiemap};

use crate::wire::{u32_at, u64_at};

/// Before the answers: kind, length of the base, length of the file.
const HEAD_LEN: usize = 17;

/// Answers in the order they come, and the extents that were in them.
struct Answers<'a> {
    is_btrfs: bool,
    answers: VecDeque<&'a [u8]>,
    seen: Vec<Extent>,
}

impl Pages for Answers<'_> {
    fn page(&mut self, from: u64) -> Result<Page, Degraded> {
        let Some(answer) = self.answers.pop_front() else { return Ok(Page::default()) };
        let page = match self.is_btrfs {
            true => btrfs_items::parse(answer, u64_at(answer, btrfs_items::HEAD_LEN + 8), from),
            false => fiemap::parse(answer, from),
        }?;
        self.seen.extend_from_slice(&page.extents);
        Ok(page)
    }
}

impl Answers<'_> {
    fn place(&self, at: u64) -> Place {
        let found = self.seen.iter().find(|extent| extent.range.contains(&at));
        found.map_or(Place::Zero, |extent| extent.place)
    }
}

/// An input, taken apart.
fn answers(data: &[u8]) -> Option<(Answers<'_>, u64, Answers<'_>, u64)> {
    let (head, mut rest) = data.split_at_checked(HEAD_LEN)?;
    let is_btrfs = head[0] % 2 == 1;
    let new = || Answers { is_btrfs, answers: VecDeque::new(), seen: Vec::new() };
    let (mut base, mut now) = (new(), new());
    while let Some((head, behind)) = rest.split_at_checked(5) {
        let len = (u32_at(head, 1) as usize).min(behind.len());
        let (answer, behind) = behind.split_at(len);
        let file = if head[0] % 2 == 0 { &mut base } else { &mut now };
        file.answers.push_back(answer);
        rest = behind;
    }
    Some((base, u64_at(head, 1), now, u64_at(head, 9)))
}

/// Compares two files of which the kernel says this.
pub fn extents(data: &[u8]) {
    let Some((mut base, base_size, mut now, size)) = answers(data) else { return };
    let mut told = ChangeList::new(Change::Changed);
    let walks = (Walk::new(&mut base, base_size), Walk::new(&mut now, size));
    if diff(walks.0, walks.1, &mut told).is_err() {
        return;
    }
    let told = told.finish(size);
    check_coverage(&told, size).expect("the whole file is told of");
    for extent in told {
        for at in [extent.range.start, extent.range.end - 1] {
            let (old, new) = (base.place(at), now.place(at));
            match extent.change {
                Change::Unchanged => {
                    assert!(at < base_size, "{at} is behind the base's end");
                    assert!(old == new && new != Place::Unknown, "{at}: {old:?} {new:?}");
                }
                Change::Zero => assert_eq!(new, Place::Zero, "{at}"),
                Change::Changed => {}
            }
        }
    }
}

/// An input of these answers.
pub fn input(is_btrfs: bool, files: [(u64, Vec<Vec<u8>>); 2]) -> Vec<u8> {
    let mut input = vec![u8::from(is_btrfs)];
    for (size, _) in &files {
        input.extend(size.to_le_bytes());
    }
    for (file, (_, answers)) in files.into_iter().enumerate() {
        for answer in answers {
            input.push(file as u8);
            input.extend((answer.len() as u32).to_le_bytes());
            input.extend(answer);
        }
    }
    input
}
