//! Access logs in the Common and the Combined Log Format.

use std::{collections::HashMap, io::BufRead};

use crate::target::WarmTarget;

/// The paths of an access log, the most requested first.
///
/// It counts lines of `GET` that were answered with 200, 203, 206 or 304, and of clients that were not authenticated. A log
/// lacks hosts, schemes and most request fields, so the options of the warmer supply them. Only paths that a
/// [route](crate::Warmer::routes) allows are requested, because a log also has paths that act, such as `/logout`, and links
/// that work once.
///
/// # Examples
///
/// ```
/// use larder_warming::AccessLog;
///
/// # fn main() -> std::io::Result<()> {
/// let log = "\
/// ::1 - - [30/Nov/2026:10:00:00 +0000] \"GET /products/42 HTTP/1.1\" 200 512
/// ::1 - - [30/Nov/2026:10:00:01 +0000] \"GET / HTTP/1.1\" 200 99 \"-\" \"curl/8.5\"
/// ::1 - - [30/Nov/2026:10:00:02 +0000] \"GET /products/42 HTTP/1.1\" 304 0 \"-\" \"curl/8.5\"
/// ::1 - - [30/Nov/2026:10:00:03 +0000] \"POST /cart HTTP/1.1\" 303 0 \"-\" \"curl/8.5\"
/// ";
/// let log = AccessLog::read(log.as_bytes())?;
/// assert_eq!(log.paths(), ["/products/42", "/"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[doc(alias("common log format", "combined log format", "nginx", "apache"))]
pub struct AccessLog {
    paths: Vec<String>,
    unreadable: usize,
}

impl AccessLog {
    /// Reads a log.
    ///
    /// # Errors
    ///
    /// If it cannot be read. A line in another format is counted and skipped.
    pub fn read(log: impl BufRead) -> std::io::Result<Self> {
        let mut requests: HashMap<String, u64> = HashMap::new();
        let mut unreadable = 0;
        for line in log.split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            match path(&line) {
                Line::Path(path) => *requests.entry(path.to_owned()).or_default() += 1,
                Line::Other => {}
                Line::Unreadable => unreadable += 1,
            }
        }
        let mut paths: Vec<_> = requests.into_iter().collect();
        paths.sort_by(|(a, more), (b, less)| less.cmp(more).then_with(|| a.cmp(b)));
        Ok(Self { paths: paths.into_iter().map(|(path, _)| path).collect(), unreadable })
    }

    /// Returns the paths, the most requested first.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Returns the number of lines in another format.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Returns the first `most` paths as targets.
    pub fn top(self, most: usize) -> impl Iterator<Item = WarmTarget> {
        self.paths.into_iter().take(most).map(WarmTarget::logged)
    }
}

enum Line<'a> {
    /// A request that may have been stored.
    Path(&'a str),
    /// Another request.
    Other,
    Unreadable,
}

/// Reads a line: `client ident user [time] "GET /path HTTP/1.1" status bytes`, and what the combined format adds.
fn path(line: &str) -> Line<'_> {
    if line.trim().is_empty() {
        return Line::Other;
    }
    let parts = || {
        let (client, rest) = line.split_once(" [")?;
        let user = client.split(' ').nth(2)?;
        let (_, rest) = rest.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let status = rest.split(' ').next()?.trim();
        let mut words = request.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        status.parse::<u16>().ok().map(|status| (user, method, path, status))
    };
    match parts() {
        Some(("-", "GET", path, 200 | 203 | 206 | 304)) if path.starts_with('/') => {
            Line::Path(path)
        }
        Some(_) => Line::Other,
        None => Line::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_anonymous_clients_that_succeeded_count() {
        let log = "\
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /a?x=1 HTTP/1.1\" 200 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /a?x=1 HTTP/2.0\" 304 - \"https://shop.example/\" \"Mozilla/5.0 (X11; \\\"x\\\")\"
10.0.0.1 - ada [30/Nov/2026:10:00:00 +0000] \"GET /account HTTP/1.1\" 200 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"POST /a HTTP/1.1\" 200 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /gone HTTP/1.1\" 404 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET http://evil.example/ HTTP/1.1\" 200 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /b HTTP/1.1\" 200 5
10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"\\x16\\x03\" 400 5

what is this
";
        let log = AccessLog::read(log.as_bytes()).unwrap();
        assert_eq!(
            (log.paths(), log.unreadable()),
            (&["/a?x=1".to_owned(), "/b".to_owned()][..], 2)
        );
        assert_eq!(log.top(1).count(), 1);
    }
}
