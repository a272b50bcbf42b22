//! The pages of larder's own, such as the dashboard, which bypass the caches of their larder wherever they are nested.
//!
//! A router does not tell a page where it is nested before its first request. That request may come through a cache, which
//! strips credentials and query parameters that are not part of its key, so the cache passes the head on as it was. From then
//! on the path is known, and requests for it bypass the caches.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use http::{Extensions, HeaderMap, Request, Uri};
use larder_core::kernel::Kernel;

use crate::address::{Head, original_uri};

/// The paths under which the pages of one larder are nested.
#[derive(Debug, Default)]
pub struct OwnPages {
    /// Whether there are such pages.
    exist: AtomicBool,
    /// The paths that are known, without their last slash.
    paths: [OnceLock<Box<str>>; MOST_PATHS],
}

impl OwnPages {
    /// Announces that there are such pages, whose paths are not known yet.
    pub fn announce(kernel: &Kernel) -> Arc<Self> {
        let pages = kernel.state::<Self>();
        pages.exist.store(true, Ordering::Relaxed);
        pages
    }

    /// Notes the path under which the pages are nested. The fifth path and further ones are not noted: their requests come
    /// through the caches, which do not store them.
    pub fn note(&self, path: &str) {
        let path = path.trim_end_matches('/');
        if !path.is_empty() && !self.has(path) {
            // Of two threads that note a path at once, the one that loses the place tries the next.
            let mut places = self.paths.iter();
            places.find(|place| {
                place.set(path.into()).is_ok() || place.get().is_some_and(|it| **it == *path)
            });
        }
    }

    /// Whether the path belongs to such a page.
    #[inline]
    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.iter().map_while(OnceLock::get).any(|page| {
            path.strip_prefix(&**page).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// Whether the request may be for such a page, so that its head has to reach it unchanged.
    pub(crate) fn may_have(&self) -> bool {
        self.exist.load(Ordering::Relaxed)
    }
}

/// The head of a request as it was before a response cache changed it for a fill.
#[derive(Clone, Debug)]
pub struct UnchangedHead(Arc<(Uri, HeaderMap)>);

impl UnchangedHead {
    pub(crate) fn note<B>(request: &mut Request<B>) {
        if request.extensions().get::<Self>().is_none() {
            let head = Head::from(&*request);
            let unchanged = (original_uri(&head).clone(), head.headers.clone());
            request.extensions_mut().insert(Self(Arc::new(unchanged)));
        }
    }

    /// Returns the URI and the fields of a request, as the outermost response cache received them.
    pub fn of<'a>(
        extensions: &'a Extensions,
        uri: &'a Uri,
        headers: &'a HeaderMap,
    ) -> (&'a Uri, &'a HeaderMap) {
        match extensions.get::<Self>() {
            Some(Self(head)) => (&head.0, &head.1),
            None => (uri, headers),
        }
    }
}

const MOST_PATHS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_path_and_all_below_it_and_no_other() {
        let pages = OwnPages::default();
        assert!(!pages.has("/larder") && !pages.has("/"));
        pages.note("/");
        assert!(!pages.has("/"), "an application at the root is not a page of larder");
        for path in ["/larder/", "/larder", "/internal/larder"] {
            pages.note(path);
        }
        for path in ["/larder", "/larder/", "/larder/api/stats", "/internal/larder/app.js"] {
            assert!(pages.has(path), "{path}");
        }
        for path in ["/", "/larders", "/larde", "/internal", "/x/larder"] {
            assert!(!pages.has(path), "{path}");
        }
        assert_eq!(pages.paths.iter().filter(|path| path.get().is_some()).count(), 2);
        (0..9).for_each(|number| pages.note(&format!("/{number}")));
        assert!(pages.has("/1") && !pages.has("/8"));
    }
}
