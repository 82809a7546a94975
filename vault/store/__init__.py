"""The vault's database: engine, tables, migrations."""
