//! Durations as text, such as `5m`.

/// Returns the milliseconds of a text.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    let allowed = || {
        format!(
            "`{text}` is no duration: allowed is a whole number with a unit, as in 250ms, 30s, 5m, 2h, 7d"
        )
    };
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(allowed)?;
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(allowed()),
    };
    let number: u64 = number.parse().map_err(|_| allowed())?;
    number.checked_mul(unit).ok_or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, expected) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(millis(text), Ok(expected));
        }
        for text in ["", "5", "m", "5 m", "5min", "-5m", "1.5h", "99999999999999999999d"] {
            let error = millis(text).unwrap_err();
            assert!(error.contains("allowed is a whole number with a unit"), "{error}");
        }
    }
}
