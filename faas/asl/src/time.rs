//! Timestamps as the language writes them: RFC 3339 with a capital `T`, and a capital `Z` where there is no offset.

use jiff::Timestamp;

/// The moment, if the text is one.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    let b = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| b.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let mark = |at: usize, c: u8| b.get(at) == Some(&c);
    let date = digits(0..4) && mark(4, b'-') && digits(5..7) && mark(7, b'-') && digits(8..10) && mark(10, b'T');
    let clock = digits(11..13) && mark(13, b':') && digits(14..16) && mark(16, b':') && digits(17..19);
    if !date || !clock {
        return None;
    }
    let mut rest = &b[19..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = fraction.iter().take_while(|c| c.is_ascii_digit()).count();
        if count == 0 {
            return None;
        }
        rest = &fraction[count..];
    }
    let offset = match rest {
        [b'Z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|c| c.is_ascii_digit()),
        _ => false,
    };
    if offset { text.parse().ok() } else { None }
}
