//! The checksum of ZFS streams.

/// Fletcher's sums over little-endian words of 32 bits, four of them, each over the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fletcher4([u64; 4]);

impl Fletcher4 {
    /// Bytes of the sums as a stream has them.
    pub(super) const LEN: usize = 32;

    /// The sums that lie at the start of `bytes`.
    pub(super) fn at(bytes: &[u8]) -> Fletcher4 {
        let mut words = bytes.chunks_exact(8);
        Fletcher4(std::array::from_fn(|_| {
            words.next().and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
        }))
    }

    /// Goes on over `bytes`, a multiple of four of them: what every part of a stream is.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        debug_assert!(rest.is_empty(), "{} bytes are no whole words", bytes.len());
        let [mut a, mut b, mut c, mut d] = self.0;
        for word in words {
            a = a.wrapping_add(u64::from(u32::from_le_bytes(*word)));
            b = b.wrapping_add(a);
            c = c.wrapping_add(b);
            d = d.wrapping_add(c);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition_and_go_on_where_they_stopped() {
        let bytes: Vec<u8> = (1..=4).flat_map(u32::to_le_bytes).collect();
        let mut sum = Fletcher4::default();
        sum.update(&bytes);
        assert_eq!(sum, Fletcher4([10, 20, 35, 56]));
        let mut parts = Fletcher4::default();
        bytes.chunks(8).for_each(|part| parts.update(part));
        assert_eq!(parts, sum);
    }
}
