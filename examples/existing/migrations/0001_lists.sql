CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(40) NOT NULL UNIQUE,
    password_hash text NOT NULL,
    about text NOT NULL DEFAULT '',
    joined timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE lists (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    title text NOT NULL,
    is_public boolean NOT NULL DEFAULT true,
    settings jsonb NOT NULL DEFAULT '{}',
    created timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lists_by_owner ON lists (owner);

CREATE TABLE items (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    list uuid NOT NULL REFERENCES lists ON DELETE CASCADE,
    title text NOT NULL,
    url text,
    is_read boolean NOT NULL DEFAULT false,
    labels jsonb NOT NULL DEFAULT '[]',
    position int NOT NULL
);
CREATE INDEX items_by_list ON items (list, position);

CREATE TABLE comments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    list uuid NOT NULL REFERENCES lists ON DELETE CASCADE,
    author uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    body text NOT NULL,
    written timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX comments_by_list ON comments (list, written);

CREATE TABLE stars (
    list uuid NOT NULL REFERENCES lists ON DELETE CASCADE,
    starred_by uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    PRIMARY KEY (list, starred_by)
);
CREATE INDEX stars_by_user ON stars (starred_by);
