//! The hottest URLs of a cache, remembered for the next process.

use std::{collections::HashSet, io, path::Path, time::Duration};

use bytes::Bytes;
use larder_core::{
    Larder,
    store::{Store, StoreError},
};

use crate::target::WarmTarget;

/// The URLs of the responses that have the most hits, the hottest first.
///
/// Responses of a partition are not among them, so the list has no path that belongs to one user or tenant. Nor are those of
/// layers with `vary_by`, whose key cannot be made from a URL, and those that the application has fetched from other servers.
///
/// # Examples
///
/// ```no_run
/// # async fn example(larder: larder_core::Larder, warmer: larder_warming::Warmer) -> std::io::Result<()> {
/// use larder_warming::HotUrls;
///
/// // At shutdown:
/// HotUrls::of(&larder, 1_000).save("hot-urls.txt")?;
/// // At the next start; without a file there is nothing to warm.
/// warmer.warm(HotUrls::load("hot-urls.txt")?).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotUrls(Vec<String>);

impl HotUrls {
    /// Returns the hottest URLs in the memory of this process. This reads all entries of the first level.
    pub fn of(larder: &Larder, most: usize) -> Self {
        let hottest = larder.kernel().hottest_urls(most);
        Self(hottest.into_iter().map(|(url, _)| url).collect())
    }

    /// Returns the URLs.
    pub fn urls(&self) -> &[String] {
        &self.0
    }

    /// Returns these URLs and then those of an older list, `most` in all. So a run that was short does not forget what a
    /// longer one knew.
    #[must_use]
    pub fn followed_by(mut self, older: Self, most: usize) -> Self {
        let known: HashSet<String> = self.0.iter().cloned().collect();
        self.0.extend(older.0.into_iter().filter(|url| !known.contains(url)));
        self.0.truncate(most);
        self
    }

    /// Writes the URLs to a file, one on each line. The file is replaced as a whole.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, file: impl AsRef<Path>) -> io::Result<()> {
        let file = file.as_ref();
        let new = file.with_extension("new");
        std::fs::write(&new, self.text())?;
        std::fs::rename(new, file)
    }

    /// Reads the URLs from a file. A file that does not exist has none.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn load(file: impl AsRef<Path>) -> io::Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Self::of_text(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes the URLs to a store, such as Redis, under a name, for `lifetime`.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    pub async fn save_to(
        &self,
        store: &dyn Store,
        name: &str,
        lifetime: Duration,
    ) -> Result<(), StoreError> {
        store.set(&store_key(name), Bytes::from(self.text()), lifetime).await
    }

    /// Reads the URLs from a store. A store without the name has none.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    pub async fn load_from(store: &dyn Store, name: &str) -> Result<Self, StoreError> {
        let text = store.get(&store_key(name)).await?;
        Ok(text.map(|text| Self::of_text(&String::from_utf8_lossy(&text))).unwrap_or_default())
    }

    fn text(&self) -> String {
        self.0.iter().map(|url| format!("{url}\n")).collect()
    }

    fn of_text(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

impl IntoIterator for HotUrls {
    type Item = WarmTarget;
    type IntoIter = std::iter::Map<std::vec::IntoIter<String>, fn(String) -> WarmTarget>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(WarmTarget::from)
    }
}

fn store_key(name: &str) -> String {
    format!("larder:hot-urls:{name}")
}
