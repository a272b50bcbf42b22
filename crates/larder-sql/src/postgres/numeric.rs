//! Decimal numbers of any size.

/// Writes a number of any size as the server does.
///
/// Source: `numeric_send` in PostgreSQL's `numeric.c`: digits of base 10,000, the weight of the first digit, the sign,
/// and the number of decimal places.
pub(super) fn text_of(bytes: &[u8]) -> Option<String> {
    let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (count, weight) = (i32::from(half(0)?), i32::from(half(2)? as i16));
    let (sign, places) = (half(4)?, usize::from(half(6)?));
    let special = match sign {
        0xC000 => Some("NaN"),
        0xD000 => Some("Infinity"),
        0xF000 => Some("-Infinity"),
        _ => None,
    };
    if let Some(special) = special {
        return Some(special.to_owned());
    }
    let digit = |at: i32| match usize::try_from(at) {
        Ok(place) if at < count => half(8 + 2 * place),
        _ => Some(0),
    };
    let mut text = if sign == 0x4000 { "-".to_owned() } else { String::new() };
    if weight < 0 {
        text.push('0');
    }
    for at in 0..=weight {
        let digit = digit(at)?;
        text += &if at == 0 { digit.to_string() } else { format!("{digit:04}") };
    }
    if places > 0 {
        let mut rest = String::new();
        let mut at = weight + 1;
        while rest.len() < places {
            rest += &format!("{:04}", digit(at)?);
            at += 1;
        }
        text.push('.');
        text += &rest[..places];
    }
    Some(text)
}

/// Writes a decimal number as the server sends it. `None` if the text is no decimal number.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let special = match text {
        "NaN" => Some(0xC000_u16),
        "Infinity" => Some(0xD000),
        "-Infinity" => Some(0xF000),
        _ => None,
    };
    let written =
        |halves: &[u16]| halves.iter().flat_map(|half| half.to_be_bytes()).collect::<Vec<u8>>();
    if let Some(sign) = special {
        return Some(written(&[0, 0, sign, 0]));
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (0x4000, digits),
        None => (0, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    // Groups of four digits, counted from the decimal point.
    let before = whole.len().next_multiple_of(4);
    let after = fraction.len().next_multiple_of(4);
    let padded = format!("{whole:0>before$}{fraction:0<after$}");
    let groups: Option<Vec<u16>> =
        padded.as_bytes().chunks(4).map(|group| str::from_utf8(group).ok()?.parse().ok()).collect();
    let groups = groups?;
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    let kept = groups.iter().rposition(|group| *group != 0).map_or(zeros, |last| last + 1);
    let weight = i16::try_from(before / 4).ok()? - 1 - i16::try_from(zeros).ok()?;
    let groups = &groups[zeros..kept];
    let places = u16::try_from(fraction.len()).ok()?;
    let count = u16::try_from(groups.len()).ok()?;
    let weight = if groups.is_empty() { 0 } else { weight };
    let mut halves = vec![count, weight as u16, sign, places];
    halves.extend(groups);
    Some(written(&halves))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(halves: &[i32]) -> Vec<u8> {
        halves.iter().flat_map(|half| (*half as u16).to_be_bytes()).collect()
    }

    #[test]
    fn numbers_of_any_size_are_written_as_the_server_writes_them() {
        let rows: [(&[i32], &str); 9] = [
            (&[0, 0, 0, 0], "0"),
            (&[0, 0, 0, 2], "0.00"),
            (&[1, 0, 0, 0, 42], "42"),
            (&[2, 0, 0x4000, 2, 19, 9900], "-19.99"),
            (&[1, 1, 0, 0, 3], "30000"),
            (&[1, -1, 0, 4, 25], "0.0025"),
            (&[1, -2, 0, 8, 25], "0.00000025"),
            (&[3, 1, 0, 3, 1, 2, 5000], "10002.500"),
            (&[0, 0, 0xC000, 0], "NaN"),
        ];
        for (halves, expected) in rows {
            assert_eq!(text_of(&written(halves)).as_deref(), Some(expected));
            assert_eq!(bytes_of(expected), Some(written(halves)), "{expected}");
        }
        assert_eq!(text_of(&written(&[2, 0, 0, 4, 1])), None, "cut short");
    }

    #[test]
    fn texts_that_are_no_numbers_are_not_written() {
        for text in ["", "-", ".", "1e3", "1.2.3", "0x1", " 1", "nan"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
        for (text, same) in [("007", "7"), ("+7", "7"), (".5", "0.5"), ("00.50", "0.50")] {
            assert_eq!(bytes_of(text), bytes_of(same), "{text}");
        }
    }
}
