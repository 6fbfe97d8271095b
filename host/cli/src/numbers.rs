//! The numbers of flags. Each error says in words which values are allowed.

/// Longest time of a flag, seconds: about 31 years.
const SECONDS_MAX: f64 = 1e9;
/// Highest temperature.
const TEMPERATURE_MAX: f64 = 2.0;

/// A type of whole numbers.
pub(crate) trait Whole: TryFrom<u64> {
    /// Its largest value.
    const MAX: u64;
}

impl Whole for u32 {
    const MAX: u64 = u32::MAX as u64;
}

impl Whole for u64 {
    const MAX: u64 = u64::MAX;
}

/// Reads a whole number of at least `LEAST`.
pub(crate) fn whole<const LEAST: u64, T: Whole>(text: &str) -> Result<T, String> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{text}` is not a whole number"));
    }
    let too_large = || format!("{text} is not allowed: the largest value is {}", T::MAX);
    let number: u64 = match (is_negative, digits.parse()) {
        (true, Ok(0)) => 0,
        (true, _) => return Err(too_small(text, &LEAST.to_string())),
        (false, number) => number.map_err(|_| too_large())?,
    };
    if number < LEAST {
        return Err(too_small(text, &LEAST.to_string()));
    }
    T::try_from(number).map_err(|_| too_large())
}

/// Reads a time in seconds.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    decimal(text, SECONDS_MAX)
}

/// Reads a temperature of generation.
pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    decimal(text, TEMPERATURE_MAX).map(|number| number as f32)
}

fn decimal(text: &str, most: f64) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| !number.is_nan());
    match number {
        None => Err(format!("`{text}` is not a number")),
        Some(number) if number < 0.0 => Err(too_small(text, "0")),
        Some(number) if number > most => Err(format!("{text} is not allowed: the largest value is {most}")),
        Some(number) => Ok(number),
    }
}

fn too_small(text: &str, least: &str) -> String {
    format!("{text} is not allowed: the smallest value is {least}")
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command, CommandFactory, error::ErrorKind};

    use super::*;
    use crate::arguments::Arguments;

    #[test]
    fn number_is_read_or_refused_with_its_bound() {
        let (small, large) = ("is not allowed: the smallest value is", "is not allowed: the largest value is");
        assert_eq!(whole::<1, u32>("4294967295"), Ok(u32::MAX));
        assert_eq!(whole::<0, u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(whole::<0, u32>("-0"), Ok(0));
        assert_eq!(whole::<1, u32>("0"), Err(format!("0 {small} 1")));
        assert_eq!(whole::<0, u32>("-7"), Err(format!("-7 {small} 0")));
        assert_eq!(whole::<1, u32>("4294967296"), Err(format!("4294967296 {large} 4294967295")));
        assert_eq!(
            whole::<1, u64>("99999999999999999999"),
            Err(format!("99999999999999999999 {large} 18446744073709551615"))
        );
        assert_eq!(whole::<1, u32>("1.5"), Err("`1.5` is not a whole number".to_owned()));
        assert_eq!(seconds("0.25"), Ok(0.25));
        assert_eq!(seconds("-1"), Err(format!("-1 {small} 0")));
        assert_eq!(seconds("inf"), Err(format!("inf {large} 1000000000")));
        assert_eq!(temperature("2.5"), Err(format!("2.5 {large} 2")));
    }

    /// Calls `check` with the names of the commands and each flag with a number.
    fn each_number(command: &Command, names: &[String], check: &mut impl FnMut(&[String], &Arg)) {
        for flag in command.get_arguments() {
            let value = flag.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
            if matches!(value, Some("N" | "NUMBER" | "SECONDS")) {
                check(names, flag);
            }
        }
        for command in command.get_subcommands() {
            let names = [names, &[command.get_name().to_owned()]].concat();
            each_number(command, &names, check);
        }
    }

    #[test]
    fn each_flag_with_a_number_says_what_is_allowed() {
        let mut flags = 0;
        each_number(&Arguments::command(), &["weir".to_owned()], &mut |names, flag| {
            let long = flag.get_long().expect("a flag with a number has a long name");
            for value in ["x", "", "nan", "-1", "99999999999999999999999999"] {
                let arguments = names.iter().cloned().chain([format!("--{long}={value}")]);
                let error = Arguments::command().try_get_matches_from(arguments).expect_err(long);
                assert!(
                    matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue),
                    "{names:?} {error}"
                );
                let message = error.to_string();
                let is_plain = ["is not a whole number", "is not a number", "is not allowed: the "];
                assert!(
                    value.is_empty() || is_plain.iter().any(|part| message.contains(part)),
                    "{names:?} --{long}={value}: {message}"
                );
            }
            flags += 1;
        });
        assert!(flags > 30, "{flags} flags");
    }
}
