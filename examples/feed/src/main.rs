//! A social feed that is never stale: `cargo run --release -p feed`.
//!
//! A feed shows the newest posts of all followed authors. It depends on *each* of them, also on those without a post on
//! the page, because any of them may write the next newest post. So each feed has one tag for each followed author, and a
//! post is one invalidation of one tag, however many readers follow its author.
//!
//! # How it scales
//!
//! An entry may have 2,048 tags by default, and 10,000 at most (`LarderBuilder::max_tags`). A hit costs hardly more with a
//! thousand tags than with eight; a tag takes about 32 bytes in the entry. For readers with more authors, turn the
//! dependency around: give each feed the one tag `("feed", reader)`, and let a handler of a `Posted` event
//! (`Larder::on_async`) look up the followers of the author and return their tags. Then a post costs one invalidation for
//! each follower, 5,000 of them in one append.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use larder::{Larder, LoadHandle, Policy, values::Values};
use serde::{Deserialize, Serialize};

const AUTHORS: u64 = 10_000;
const READERS: u64 = 200;
const FOLLOWED: u64 = 1_000;
const REQUESTS: u64 = 200_000;
/// One request in so many is a post.
const READS_PER_POST: u64 = 1_000;
const PAGE: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Post {
    number: u64,
    author: u64,
}

/// The database: the posts of each author, the newest last.
#[derive(Clone, Default)]
struct Posts(Arc<Mutex<HashMap<u64, Vec<Post>>>>);

impl Posts {
    fn add(&self, post: Post) {
        let mut posts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        posts.entry(post.author).or_default().push(post);
    }

    /// The newest posts of these authors, the newest first.
    fn newest(&self, authors: &[u64]) -> Vec<Post> {
        let posts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |author| posts.get(author).into_iter().flatten().rev().take(PAGE).cloned();
        let mut newest: Vec<Post> = authors.iter().flat_map(of).collect();
        newest.sort_by_key(|post| std::cmp::Reverse(post.number));
        newest.truncate(PAGE);
        newest
    }
}

struct Feeds {
    larder: Larder,
    feeds: Values<Vec<Post>>,
    posts: Posts,
    loads: Arc<AtomicU64>,
}

impl Feeds {
    fn new(larder: &Larder) -> Self {
        let feeds = larder.values(Policy::ttl(Duration::from_secs(3600)).name("feeds"));
        Self { larder: larder.clone(), feeds, posts: Posts::default(), loads: Arc::default() }
    }

    async fn feed(&self, reader: u64) -> Result<Arc<Vec<Post>>, larder::LoadError<Infallible>> {
        let (posts, loads) = (self.posts.clone(), Arc::clone(&self.loads));
        let load = move |fill: LoadHandle| async move {
            loads.fetch_add(1, Ordering::Relaxed);
            let authors = followed(reader);
            authors.iter().for_each(|author| fill.tag(("author", *author)));
            Ok(posts.newest(&authors))
        };
        self.feeds.get_or_load(("feed", reader), load).await
    }

    async fn post(&self, post: Post) {
        let author = post.author;
        self.posts.add(post);
        let _logged = self.larder.invalidate(("author", author)).await;
    }
}

/// The authors that a reader follows.
fn followed(reader: u64) -> Vec<u64> {
    (0..FOLLOWED).map(|number| (reader * 37 + number * 10 + number % 7) % AUTHORS).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let larder = Larder::builder().build()?;
    let feeds = Feeds::new(&larder);
    for number in 0..AUTHORS {
        feeds.posts.add(Post { number, author: number * 7 % AUTHORS });
    }
    for reader in 0..READERS {
        feeds.feed(reader).await?;
    }
    let (mut hit, mut hits, mut number) = (Duration::ZERO, 0, AUTHORS);
    for request in 0..REQUESTS {
        if request % READS_PER_POST == 0 {
            number += 1;
            feeds.post(Post { number, author: number * 31 % AUTHORS }).await;
            continue;
        }
        let loads = feeds.loads.load(Ordering::Relaxed);
        let began = Instant::now();
        feeds.feed(request * 13 % READERS).await?;
        let took = began.elapsed();
        if feeds.loads.load(Ordering::Relaxed) == loads {
            hit += took;
            hits += 1;
        }
    }
    let stats = larder.stats();
    let total = stats.cache("feeds").ok_or("the feeds have no counters")?.total;
    println!(
        "{READERS} readers, each follows {FOLLOWED} of {AUTHORS} authors; a post in {READS_PER_POST} requests"
    );
    println!("hit ratio {:.1} %, {} invalidations", total.hit_ratio * 100.0, stats.invalidations);
    println!(
        "a hit took {:.2} us, with {FOLLOWED} tags",
        hit.as_secs_f64() * 1e6 / f64::from(hits)
    );
    println!("memory {} KiB for a feed", stats.memory.bytes / stats.memory.entries / 1024);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_post_of_an_author_without_a_post_on_the_page_appears_at_once() {
        let larder = Larder::builder().build().unwrap();
        let feeds = Feeds::new(&larder);
        let (authors, others) = (followed(7), followed(8));
        for (number, author) in (0..).zip(&authors[..30]) {
            feeds.posts.add(Post { number, author: *author });
        }
        let page = feeds.feed(7).await.unwrap();
        let silent = authors[999];
        assert!(page.len() == PAGE && page.iter().all(|post| post.author != silent));
        assert!(Arc::ptr_eq(&page, &feeds.feed(7).await.unwrap()), "a hit");

        let new = Post { number: 100, author: silent };
        feeds.post(new.clone()).await;
        assert_eq!(feeds.feed(7).await.unwrap().first(), Some(&new));

        // A post of another author costs no hit.
        let stranger = others.into_iter().find(|author| !authors.contains(author)).unwrap();
        let page = feeds.feed(7).await.unwrap();
        feeds.post(Post { number: 101, author: stranger }).await;
        assert!(Arc::ptr_eq(&page, &feeds.feed(7).await.unwrap()));
    }
}
