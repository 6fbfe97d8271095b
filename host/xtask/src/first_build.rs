//! The estimate of the first build, which takes longest, printed before it.

use std::path::Path;

use crate::house::House;
use crate::sh;

/// The time of the first build of `weir` and its components, seconds of one core of a small virtual machine.
const FIRST_BUILD_CPU_S: u64 = 1_400;
/// Its size in the target folder, megabytes.
const FIRST_BUILD_MB: u64 = 3_200;

/// Prints the time and the disk space of the first build, if there was none.
pub(crate) fn announce(house: &House) {
    if house.weir().exists() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    eprintln!("{}", announcement(cores, &house.target, free_mb(house)));
}

fn announcement(cores: u64, target: &Path, free_mb: Option<u64>) -> String {
    let minutes = FIRST_BUILD_CPU_S.div_ceil(cores * 60);
    let gigabytes = |mb: u64| format!("{}.{} GB", mb / 1000, mb % 1000 / 100);
    let free = match free_mb {
        Some(free) if free < FIRST_BUILD_MB => {
            format!("; only {} are free there, which is too little", gigabytes(free))
        }
        Some(free) => format!(", where {} are free", gigabytes(free)),
        None => String::new(),
    };
    let plural = if cores == 1 { "core" } else { "cores" };
    format!(
        "The first build takes about {minutes} min on this machine's {cores} {plural} (longer where they are slow or busy) and \
         {} in {}{free}. Later builds compile what has changed.",
        gigabytes(FIRST_BUILD_MB),
        target.display()
    )
}

/// Free megabytes on the disk of the target folder, from `df`; `None` if it fails.
fn free_mb(house: &House) -> Option<u64> {
    let folder = house.target.ancestors().find(|folder| folder.exists())?;
    let text = sh::stdout_of(sh::program(house, "df").args(["-Pk"]).arg(folder)).ok()?;
    free_of(&text)
}

/// The fourth column of the last line of `df -Pk`, as megabytes.
fn free_of(text: &str) -> Option<u64> {
    let kilobytes: u64 = text.lines().last()?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_names_time_and_space() {
        let text = announcement(2, Path::new("/t"), Some(58_300));
        assert!(
            text.contains(&format!("about {} min on this machine's 2 cores", FIRST_BUILD_CPU_S.div_ceil(120))),
            "{text}"
        );
        assert!(text.contains("in /t, where 58.3 GB are free"), "{text}");
        let text = announcement(1, Path::new("/t"), Some(700));
        assert!(text.contains("1 core ") && text.contains("only 0.7 GB are free there, which is too little"), "{text}");
        assert!(announcement(64, Path::new("/t"), None).contains("about 1 min"));
    }

    #[test]
    fn free_room_is_read_from_df() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 100 50 2000000 50% /";
        assert_eq!(free_of(text), Some(2048));
        assert_eq!(free_of(""), None);
    }
}
