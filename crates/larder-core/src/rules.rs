//! The dependency rules of the builder: by which the invalidation of one tag also invalidates another.

use serde::{Deserialize, Serialize};

use crate::{
    tag::Tag,
    target::{Selector, Target},
};

/// The dependency rules of an application ([`LarderBuilder::depends`](crate::LarderBuilder::depends)).
///
/// Each process applies its rules before it appends a record. It also publishes them beside a shared log, for clients that
/// invalidate without being part of the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules(Vec<Rule>);

/// A rule, by which an invalidation of `when` also invalidates `also`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    when: Tag,
    also: Tag,
}

impl Rules {
    /// Adds a rule.
    pub fn add(&mut self, when: impl Into<Tag>, also: impl Into<Tag>) {
        let rule = Rule { when: when.into(), also: also.into() };
        if !self.0.contains(&rule) {
            self.0.push(rule);
        }
    }

    /// Adds all rules of others.
    pub fn extend(&mut self, others: Self) {
        others.0.into_iter().for_each(|rule| self.add(rule.when, rule.also));
    }

    /// Returns the selectors of targets in a namespace, with those that the rules add.
    pub(crate) fn selectors(&self, targets: Vec<Target>, namespace: &str) -> Vec<Selector> {
        // Rules apply before the namespace, so the tags that they add get the namespace of the invalidation.
        let named = targets.into_iter().flat_map(Target::selectors).collect();
        self.expand(named).into_iter().map(|selector| selector.within(namespace)).collect()
    }

    /// Adds the selectors that follow from the rules, until there are no new selectors. Each tag is added only once, so a
    /// circle of rules ends.
    fn expand(&self, mut selectors: Vec<Selector>) -> Vec<Selector> {
        let mut at = 0;
        while at < selectors.len() {
            if let Selector::Tag(tag) = selectors[at].clone() {
                for rule in self.0.iter().filter(|rule| rule.applies_to(&tag)) {
                    let also = Selector::Tag(rule.also.clone());
                    if !selectors.contains(&also) {
                        selectors.push(also);
                    }
                }
            }
            at += 1;
        }
        selectors
    }
}

impl Rule {
    fn applies_to(&self, tag: &Tag) -> bool {
        // If a prefix is invalidated, the rules for tags below it apply.
        if let Some(branch) = tag.as_str().strip_suffix('*')
            && self.when.as_str().starts_with(branch)
        {
            return true;
        }
        match self.when.as_str().strip_suffix('*') {
            Some(prefix) => tag.as_str().starts_with(prefix),
            None => *tag == self.when,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules<const N: usize>(all: [(&str, &str); N]) -> Rules {
        let mut rules = Rules::default();
        all.into_iter().for_each(|(when, also)| rules.add(Tag::new(when), Tag::new(also)));
        rules
    }

    #[test]
    fn rules_chain_and_a_circle_of_rules_ends() {
        let rules = rules([("product:*", "catalog"), ("catalog", "home"), ("home", "catalog")]);
        let all = rules.expand(vec![Selector::Tag(Tag::new("product:1"))]);
        let tags = ["product:1", "catalog", "home"].map(|tag| Selector::Tag(Tag::new(tag)));
        assert_eq!(all, tags);
    }

    #[test]
    fn invalidating_a_prefix_applies_the_rules_of_tags_below_it() {
        let rules = rules([("product:42", "home")]);
        let all = rules.expand(vec![Selector::Tag(Tag::new("product").below())]);
        assert!(all.contains(&Selector::Tag(Tag::new("home"))));
    }
}
