//! Log positions that clients carry, so that every process applies the invalidations of a client's writes before it
//! serves that client.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use larder_core::{
    SealingKeys,
    kernel::{Clock, Kernel},
    store::{Epoch, Position},
};

/// The log position that the client of a write carries, in a cookie or a header field. The process that serves the next
/// request of that client waits until it has applied the log up to this position. If that takes too long, or if the
/// position belongs to another log, the request bypasses stored entries.
///
/// The position is sealed, so that a client cannot make a process wait for a record that was never written. It does not
/// identify a user. The layer strips it from the request before inner layers see it, so that they do not treat its
/// cookie as credentials.
///
/// Every process needs the same keys.
#[doc(alias("read-your-writes", "session consistency", "sticky sessions"))]
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is given to a layer"]
pub struct ReadYourWrites {
    keys: SealingKeys,
    carrier: Carrier,
    wait: Duration,
    lasts: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Cookie,
    Field,
}

impl ReadYourWrites {
    /// Carries the position in a cookie named `larder-position`, for browsers.
    pub fn by_cookie(keys: SealingKeys) -> Self {
        Self { keys, carrier: Carrier::Cookie, wait: WAIT, lasts: LASTS }
    }

    /// Carries the position in a header field named `Larder-Position`, for programs. With each request, a program sends
    /// the last value that it received.
    pub fn by_field(keys: SealingKeys) -> Self {
        Self { carrier: Carrier::Field, ..Self::by_cookie(keys) }
    }

    /// Sets how long a request may wait until its process has applied the invalidation of the write; 100 ms by default.
    /// Other processes usually follow within a few milliseconds.
    pub fn wait(mut self, longest: Duration) -> Self {
        self.wait = longest;
        self
    }

    /// Sets how long the client carries the position after a write; a minute by default. This time should be longer
    /// than the time for which another process may be cut off from the log and still serve requests.
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasts = time;
        self
    }

    /// Strips the position from a request and returns it, if it is sealed with our keys and belongs to the log that
    /// this process follows, or belongs to another log and is not older than [`lasting`](Self::lasting).
    pub(super) fn taken_from(&self, headers: &mut HeaderMap, kernel: &Kernel) -> Option<Position> {
        let carried = match self.carrier {
            Carrier::Cookie => take_cookie(headers),
            Carrier::Field => headers.remove(FIELD).map(|carried| carried.as_bytes().to_vec()),
        };
        let (position, given_at) = self.read(&carried?)?;
        // For the log that this process follows the age does not matter, because the clocks of the processes may
        // differ.
        let known = kernel.log().epoch == Some(position.epoch);
        let age = seconds(kernel.clock()).saturating_sub(given_at);
        (known || age <= self.lasts.as_secs()).then_some(position)
    }

    /// Adds the position to the response of a write, if anything was invalidated since `before`.
    ///
    /// If `secure` is set, clients send the cookie only over encrypted connections.
    pub(super) fn give(
        &self,
        headers: &mut HeaderMap,
        kernel: &Kernel,
        before: Option<Position>,
        secure: bool,
    ) {
        let position = match kernel.written() {
            // No process can apply a record that the log does not have yet. So the client gets the position of an
            // unknown log, with which its requests bypass stored entries until the position expires.
            _ if kernel.invalidations_pending() > 0 => {
                Position { epoch: Epoch::from_bits(0), number: 0 }
            }
            Some(written) if before != Some(written) => written,
            _ => return,
        };
        let Some(token) = self.write(position, seconds(kernel.clock())) else { return };
        let (name, value) = match self.carrier {
            Carrier::Cookie => (
                header::SET_COOKIE,
                format!(
                    "{COOKIE}={token}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{}",
                    self.lasts.as_secs(),
                    if secure { "; Secure" } else { "" }
                ),
            ),
            Carrier::Field => (FIELD, token),
        };
        let value = HeaderValue::try_from(value).expect("base64 and digits are visible ASCII");
        headers.append(name, value);
    }

    pub(super) fn patience(&self) -> Duration {
        self.wait
    }

    fn write(&self, position: Position, now: u64) -> Option<String> {
        let mut content = position.epoch.to_bits().to_le_bytes().to_vec();
        content.extend(position.number.to_le_bytes());
        content.extend(now.to_le_bytes());
        Some(URL_SAFE_NO_PAD.encode(self.keys.seal(&content, ASSOCIATED)?))
    }

    fn read(&self, token: &[u8]) -> Option<(Position, u64)> {
        let sealed = URL_SAFE_NO_PAD.decode(token).ok()?;
        let content = self.keys.open(&sealed, ASSOCIATED)?;
        let (epoch, rest) = content.split_first_chunk::<16>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let epoch = Epoch::from_bits(u128::from_le_bytes(*epoch));
        let position = Position { epoch, number: u64::from_le_bytes(*number) };
        Some((position, u64::from_le_bytes(rest.try_into().ok()?)))
    }
}

/// Removes our cookie from `Cookie` and returns its value. The other cookies may contain any bytes.
fn take_cookie(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let ours =
        |pair: &[u8]| Some(pair.strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")?.to_vec());
    let is_there = headers.get_all(header::COOKIE).iter().any(contains_ours);
    if !is_there {
        return None;
    }
    let lines: Vec<_> = headers.get_all(header::COOKIE).iter().cloned().collect();
    headers.remove(header::COOKIE);
    let mut found = None;
    for line in lines {
        if !contains_ours(&line) {
            headers.append(header::COOKIE, line);
            continue;
        }
        let mut rest = Vec::new();
        for pair in line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
            match ours(pair) {
                Some(value) => found = Some(value),
                None => rest.push(pair),
            }
        }
        if !rest.is_empty() {
            let rest = HeaderValue::from_bytes(&rest.join(&b"; "[..]));
            headers.append(header::COOKIE, rest.expect("these bytes were part of a field"));
        }
    }
    found
}

fn contains_ours(line: &HeaderValue) -> bool {
    line.as_bytes().windows(COOKIE.len()).any(|window| window == COOKIE.as_bytes())
}

/// Returns wall-clock seconds, because another process may read the token.
fn seconds(clock: &Clock) -> u64 {
    let now = clock.wall(clock.now());
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

const COOKIE: &str = "larder-position";
const FIELD: HeaderName = HeaderName::from_static(COOKIE);
const ASSOCIATED: &[u8] = b"larder position";
const WAIT: Duration = Duration::from_millis(100);
const LASTS: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let value = |line: &&str| HeaderValue::from_bytes(line.as_bytes()).unwrap();
        lines.iter().map(|line| (header::COOKIE, value(line))).collect()
    }

    #[test]
    fn only_the_position_cookie_is_removed() {
        let rows: [(&[&str], Option<&str>, &[&str]); 7] = [
            (&["a=1; larder-position=x; b=2"], Some("x"), &["a=1; b=2"]),
            (&["larder-position=x"], Some("x"), &[]),
            (&["a=1", "larder-position=x", "b=2"], Some("x"), &["a=1", "b=2"]),
            (&["a=\u{fc}; larder-position=x"], Some("x"), &["a=\u{fc}"]),
            (&["a=larder-position=x"], None, &["a=larder-position=x"]),
            (&["not-larder-position=x; c"], None, &["not-larder-position=x; c"]),
            (&[], None, &[]),
        ];
        for (lines, taken, left) in rows {
            let mut headers = headers(lines);
            assert_eq!(take_cookie(&mut headers).as_deref(), taken.map(str::as_bytes), "{lines:?}");
            let rest = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
            assert!(rest.eq(left.iter().map(|line| line.as_bytes())), "{lines:?}");
        }
    }

    #[test]
    fn a_position_sealed_with_other_keys_is_rejected() {
        let ours = ReadYourWrites::by_field(SealingKeys::new([1; 32]));
        let position = Position { epoch: Epoch::from_bits(3), number: 7 };
        let token = ours.write(position, 9).unwrap();
        assert_eq!(ours.read(token.as_bytes()), Some((position, 9)));
        let theirs = ReadYourWrites::by_field(SealingKeys::new([2; 32]));
        assert_eq!(theirs.read(token.as_bytes()), None);
        for forged in ["", "AAAA", &token[1..], &format!("{token}A")] {
            assert_eq!(ours.read(forged.as_bytes()), None, "{forged}");
        }
    }

    #[test]
    fn a_position_of_another_log_expires() {
        let ours = ReadYourWrites::by_field(SealingKeys::new([1; 32]));
        let larder = larder_core::Larder::builder().tag_table_slots(1 << 10).build().unwrap();
        let kernel = larder.kernel();
        let position = Position { epoch: Epoch::from_bits(3), number: 7 };
        let now = seconds(kernel.clock());
        // Clocks of two processes may differ, so a position of a log that both follow does not expire.
        let known = Position { epoch: kernel.log().epoch.unwrap(), number: 7 };
        for (position, given_at, expected) in [
            (position, now, Some(position)),
            (position, now - 61, None),
            (known, now - 3600, Some(known)),
        ] {
            let mut headers = HeaderMap::new();
            let token = ours.write(position, given_at).unwrap();
            headers.insert(FIELD, token.parse().unwrap());
            assert_eq!(ours.taken_from(&mut headers, kernel), expected);
            assert!(headers.is_empty(), "inner layers do not see it");
        }
    }
}
