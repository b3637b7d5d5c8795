//! Sizes as people write and read them: powers of 1024, both ways.

/// Suffixes and their powers of two, smallest first.
const UNITS: [(char, u32); 6] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50), ('E', 60)];

/// Reads `64K`, `8G`, `1TiB`, `512` or `512B`; units are powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, suffix) = text.split_at(digits_len);
    if digits.is_empty() {
        return Err(format!("`{text}` does not start with a whole number (write `64K`, `8G`)"));
    }
    let count: u64 = digits.parse().map_err(|_| format!("`{text}` is too large"))?;
    let shift = shift_of(suffix).ok_or_else(|| bad_suffix(suffix))?;
    count.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// Reads a size that may end in `/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of nothing would never end".to_string()),
        rate => Ok(rate),
    }
}

fn shift_of(suffix: &str) -> Option<u32> {
    let suffix = suffix.trim_start().to_ascii_uppercase();
    if suffix.is_empty() || suffix == "B" {
        return Some(0);
    }
    let mut letters = suffix.chars();
    let first = letters.next()?;
    let (_, shift) = UNITS.into_iter().find(|(unit, _)| *unit == first)?;
    matches!(letters.as_str(), "" | "IB").then_some(shift)
}

fn bad_suffix(suffix: &str) -> String {
    match suffix.to_ascii_uppercase().as_str() {
        // Half the world reads it as 1000; guessing would be off by 2 to 15 %.
        "KB" | "MB" | "GB" | "TB" | "PB" | "EB" => {
            format!("`{suffix}` is ambiguous; units are powers of 1024: write `K` or `KiB`")
        }
        _ => format!("`{suffix}` is not a unit; write K, M, G, T, P or E (powers of 1024)"),
    }
}

/// Prints a size in binary units: whole where it is whole, else with three significant digits.
pub fn human(bytes: u64) -> String {
    let Some((unit, shift)) = UNITS.into_iter().rev().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    if bytes.trailing_zeros() >= shift {
        return format!("{} {unit}iB", bytes >> shift);
    }
    let value = bytes as f64 / (1u64 << shift) as f64;
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}iB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64 KiB", 64 << 10),
            ("8G", 8 << 30),
            ("1T", 1 << 40),
            ("1tib", 1 << 40),
            ("15E", 15 << 60),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "K", "-1", "1.5G", "1X", "1KK", "1Kib8", "16E", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("64KB").is_err_and(|why| why.contains("ambiguous")));
    }

    #[test]
    fn rates_may_say_per_second() {
        assert_eq!(parse_rate("100M/s"), Ok(100 << 20));
        assert_eq!(parse_rate("100M"), Ok(100 << 20));
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn sizes_print_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (64 << 10, "64 KiB"),
            ((12 << 30) + (300 << 20), "12.3 GiB"),
            ((1 << 40) - 1, "1024 GiB"),
            (100 << 40, "100 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
