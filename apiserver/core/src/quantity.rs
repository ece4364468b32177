//! Resource quantities: `100m`, `1.5Gi`, `2e3`.
//!
//! A quantity is a decimal number plus the notation it was written in; comparing looks at the number, printing at both.
//! The printed form follows upstream to the letter, with its quirk that some texts which are not canonical are kept as
//! they were written (`1.500`, `+1`), because objects read back must not differ between servers. Numbers that need more
//! than 38 digits are refused; upstream takes any length.

use std::cmp::Ordering;
use std::fmt;

/// The notation of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`, powers of 1000.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`, powers of 1024.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// Why a text is not a quantity. The texts are those upstream's clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number followed by a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number cannot be represented.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix has no meaning.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A quantity: `unscaled * 10^scale`.
#[derive(Clone, Debug)]
pub struct Quantity {
    unscaled: i128,
    scale: i32,
    format: Format,
    /// The text it was read from, where upstream would print that again.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;
/// Digits that upstream's fast path handles; only there a text is kept.
const FAST_DIGITS: usize = 18;
const MAX_BINARY: i128 = i64::MAX as i128;

impl Quantity {
    /// Zero, in decimal notation.
    pub const ZERO: Self = Self { unscaled: 0, scale: 0, format: Format::DecimalSi, text: None };

    /// A whole number.
    #[must_use]
    pub fn from_i64(value: i64, format: Format) -> Self {
        Self { unscaled: value.into(), scale: 0, format, text: None }
    }

    /// A number of thousandths.
    #[must_use]
    pub fn from_millis(value: i64, format: Format) -> Self {
        Self { unscaled: value.into(), scale: -3, format, text: None }
    }

    /// Reads a quantity. Surrounding white space is an error here; JSON decoding trims first.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        let (exponent, format) = suffix(parts.suffix).ok_or(QuantityError::Suffix)?;
        let digits = parts.whole.len() + parts.fraction.len();
        if let Some(quantity) = parts.fast(text, exponent, format, digits)? {
            return Ok(quantity);
        }
        let (mut unscaled, mut scale) = parts.number()?;
        if format == Format::BinarySi {
            unscaled = unscaled.checked_mul(1_i128 << exponent).ok_or(QuantityError::Numeric)?;
        } else {
            scale = scale.checked_add(exponent).ok_or(QuantityError::Numeric)?;
        }
        // Whoever asks for less than a billionth gets a billionth.
        (unscaled, scale) = round_up(unscaled, scale, NANO);
        let mut format = format;
        if format == Format::BinarySi {
            if compare(unscaled, scale, MAX_BINARY, 0).is_gt() {
                (unscaled, scale) = (MAX_BINARY, 0);
            }
            if unscaled != 0 && compare(unscaled, scale, 1, 0).is_lt() {
                format = Format::DecimalSi;
            }
        }
        if parts.negative {
            unscaled = -unscaled;
        }
        Ok(Self { unscaled, scale, format, text: None })
    }

    /// The notation.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the number is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.unscaled == 0
    }

    /// -1, 0 or 1.
    #[must_use]
    pub fn sign(&self) -> i32 {
        match self.unscaled.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// The number rounded away from zero to an integer, capped at the range of i64.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// The number of thousandths, rounded away from zero, capped at the range of i64.
    #[must_use]
    pub fn millis(&self) -> i64 {
        self.scaled(-3)
    }

    /// Whether the number is an integer.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        let (unscaled, scale) = round_up(self.unscaled, self.scale, 0);
        compare(unscaled, scale, self.unscaled, self.scale).is_eq()
    }

    /// The sum, in this quantity's notation (the other's, if this is zero). Capped instead of overflowing.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        let scale = self.scale.min(other.scale);
        let (a, b) = (rescale(self.unscaled, self.scale, scale), rescale(other.unscaled, other.scale, scale));
        Self { unscaled: a.saturating_add(b), scale, format, text: None }
    }

    /// The difference, in this quantity's notation (the other's, if this is zero).
    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        self.add(&other.neg())
    }

    /// The number with the other sign.
    #[must_use]
    pub fn neg(&self) -> Self {
        Self { unscaled: self.unscaled.saturating_neg(), text: None, ..*self }
    }

    fn scaled(&self, target: i32) -> i64 {
        let (unscaled, scale) = round_up(self.unscaled, self.scale, target);
        let value = rescale(unscaled, scale, target);
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.unscaled, self.scale, other.unscaled, other.scale)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.unscaled == 0 {
            return f.write_str("0");
        }
        let mut format = self.format;
        if format == Format::BinarySi {
            // Small and fractional numbers would lose precision in powers of 1024.
            let small = compare(self.unscaled, self.scale, 1024, 0).is_lt()
                && compare(self.unscaled, self.scale, -1024, 0).is_gt();
            if small || !self.is_integer() {
                format = Format::DecimalSi;
            }
        }
        if format == Format::BinarySi {
            let (unscaled, scale) = round_up(self.unscaled, self.scale, 0);
            let mut value = rescale(unscaled, scale, 0);
            let mut power = 0;
            while value % 1024 == 0 && power < BINARY.len() - 1 {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", BINARY[power]);
        }
        let (mut value, mut exponent) = strip(self.unscaled, self.scale);
        // Above the largest suffix the digits grow instead. (Upstream prints no suffix at all there.)
        let top = if format == Format::DecimalSi { 18 } else { i32::MAX };
        while exponent % 3 != 0 || exponent > top {
            value = value.saturating_mul(10);
            exponent -= 1;
        }
        match (format, exponent) {
            (_, 0) => write!(f, "{value}"),
            (Format::DecimalExponent, _) => write!(f, "{value}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
                write!(f, "{value}{suffix}")
            }
        }
    }
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// The exponent (of 10, or of 2 for binary suffixes) and the notation of a suffix.
fn suffix(text: &str) -> Option<(i32, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Some((*exponent, Format::DecimalSi));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == text) {
        return Some((power as i32 * 10, Format::BinarySi));
    }
    let exponent = text.strip_prefix(['e', 'E'])?;
    // Beyond these bounds a number is out of reach of every resource, and cheap to write for someone who means harm.
    let exponent = exponent.parse::<i64>().ok().filter(|e| (-1_000_000..=1_000_000).contains(e))?;
    Some((exponent as i32, Format::DecimalExponent))
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

/// Cuts a text into sign, digits and suffix. As forgiving as upstream: `.`, `+` and `Ki` are zero.
fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let rest = rest.trim_start_matches('0');
    let (whole, rest) = digits(rest);
    let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), digits);
    let tail = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if !digits(tail).1.is_empty() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl Parts<'_> {
    fn number(&self) -> Result<(i128, i32), QuantityError> {
        let fraction = self.fraction.trim_end_matches('0');
        if self.whole.len() + fraction.len() > 38 {
            return Err(QuantityError::Numeric);
        }
        let unscaled = format!("{}{fraction}", self.whole).parse().map_err(|_| QuantityError::Numeric)?;
        Ok((unscaled, -(fraction.len() as i32)))
    }

    /// Upstream's fast path, told apart because only it keeps the text as it was written.
    fn fast(
        &self,
        text: &str,
        exponent: i32,
        format: Format,
        digits: usize,
    ) -> Result<Option<Quantity>, QuantityError> {
        let (fits, shift, scale) = if format == Format::BinarySi {
            let precision = 15 - self.whole.len() as i32 - (exponent as f32 * 3.0 / 10.0) as i32 - 1;
            (self.fraction.is_empty() && precision >= 0, exponent, 0)
        } else {
            (digits <= FAST_DIGITS, 0, exponent.saturating_sub(self.fraction.len() as i32))
        };
        if !fits || scale < NANO {
            return Ok(None);
        }
        let shifted = format!("{}{}", self.whole, self.fraction);
        let value: i64 = shifted.parse().map_err(|_| QuantityError::Numeric)?;
        let Some(scaled) = value.checked_mul(1_i64 << shift) else { return Ok(None) };
        let keep = if format == Format::BinarySi {
            value & 7 != 0
        } else {
            scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0')
        };
        Ok(Some(Quantity {
            unscaled: if self.negative { -i128::from(scaled) } else { scaled.into() },
            scale,
            format,
            text: keep.then(|| text.into()),
        }))
    }
}

/// Moves factors of ten into the scale.
fn strip(mut unscaled: i128, mut scale: i32) -> (i128, i32) {
    while unscaled != 0 && unscaled % 10 == 0 {
        unscaled /= 10;
        scale += 1;
    }
    (unscaled, scale)
}

/// Rounds away from zero so that the scale is at least `target`.
fn round_up(unscaled: i128, scale: i32, target: i32) -> (i128, i32) {
    if scale >= target {
        return (unscaled, scale);
    }
    let Some(divisor) = 10_i128.checked_pow(scale.abs_diff(target)) else {
        return (unscaled.signum(), target);
    };
    let rest = unscaled % divisor;
    (unscaled / divisor + if rest == 0 { 0 } else { unscaled.signum() }, target)
}

/// The same number at a smaller scale, capped instead of overflowing. The scale must not rise.
fn rescale(unscaled: i128, scale: i32, target: i32) -> i128 {
    match 10_i128.checked_pow(scale.saturating_sub(target).unsigned_abs()) {
        Some(factor) => unscaled.saturating_mul(factor),
        None if unscaled == 0 => 0,
        None if unscaled < 0 => i128::MIN,
        None => i128::MAX,
    }
}

/// Compares two numbers without multiplying further than 38 digits.
fn compare(a: i128, a_scale: i32, b: i128, b_scale: i32) -> Ordering {
    if a.signum() != b.signum() || a == 0 {
        return a.signum().cmp(&b.signum());
    }
    let (a, a_scale) = strip(a, a_scale);
    let (b, b_scale) = strip(b, b_scale);
    let length = |n: i128, scale: i32| n.unsigned_abs().ilog10() as i64 + i64::from(scale);
    let order = match length(a, a_scale).cmp(&length(b, b_scale)) {
        // Of the same length: the one with the larger scale has fewer digits, so scaling it up stays in range.
        Ordering::Equal if a_scale > b_scale => rescale(a, a_scale, b_scale).unsigned_abs().cmp(&b.unsigned_abs()),
        Ordering::Equal => a.unsigned_abs().cmp(&rescale(b, b_scale, a_scale).unsigned_abs()),
        other => other,
    };
    if a < 0 { order.reverse() } else { order }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Facts of upstream's printing.
    #[test]
    fn canonical() {
        for (text, printed) in [
            ("0", "0"),
            ("-0", "0"),
            ("Ki", "0"),
            (".", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("100m", "100m"),
            ("0.1m", "100u"),
            ("0.0000000001", "1n"),
            ("-0.0000000001", "-1n"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("+1", "+1"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("0.0001Ki", "102400u"),
            ("512Mi", "512Mi"),
            ("8Ei", "9223372036854775807"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("10e3", "10e3"),
            ("1e4", "10e3"),
            ("1E", "1E"),
            ("12345678901234567890123", "12345678901234567890123"),
            ("100000000000000000000", "100E"),
            ("1000E", "1000E"),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Ok(printed.to_owned()), "{text}");
        }
    }

    #[test]
    fn errors() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1K", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1KiB", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1e99999999999", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t: &str| Quantity::parse(t).unwrap();
        assert_eq!(q("1Gi").add(&q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1").sub(&q("100m")).to_string(), "900m");
        assert_eq!(q("0").add(&q("1Ki")).to_string(), "1Ki");
        assert_eq!(q("1Gi").sub(&q("1Gi")).to_string(), "0");
        assert_eq!((q("1.1").value(), q("-1.1").value(), q("1n").millis()), (2, -2, 1));
        assert!(q("1Ki") > q("1k") && q("1e1000000") > q("1E") && q("-1e1000000") < q("1n"));
        assert_eq!(q("1000m"), q("1"));
    }

    proptest! {
        /// Printing is a fixed point and keeps the number.
        #[test]
        fn printing_keeps_the_number(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,9})?(n|u|m|k|M|G|T|Ki|Mi|Gi|Ti|e[0-9]|E-?[0-9]|)") {
            let q = Quantity::parse(&text).unwrap();
            let printed = q.to_string();
            let again = Quantity::parse(&printed).unwrap();
            prop_assert_eq!(&again, &q);
            prop_assert_eq!(again.to_string(), printed);
        }

        #[test]
        fn order_agrees_with_integers(a in any::<i32>(), b in any::<i32>(), sa in -6i32..6, sb in -6i32..6) {
            let q = |n: i32, s: i32| Quantity { unscaled: n.into(), scale: s, format: Format::DecimalSi, text: None };
            let plain = |n: i32, s: i32| i128::from(n) * 10_i128.pow((s + 6) as u32);
            prop_assert_eq!(q(a, sa).cmp(&q(b, sb)), plain(a, sa).cmp(&plain(b, sb)));
            prop_assert_eq!(q(a, sa).add(&q(b, sb)).sub(&q(b, sb)), q(a, sa));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text).map(|q| (q.to_string(), q.value(), q.millis(), q.add(&q)));
        }
    }
}
