"""What the paper study is made of: columns, measures, tables, figures."""
